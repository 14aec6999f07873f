"""What an operation cost: measurements of a model and its tokenizer on text."""
