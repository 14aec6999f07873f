"""What a tokenizer's tokens are, and which of them two tokenizers share."""
