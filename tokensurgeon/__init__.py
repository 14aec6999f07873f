"""tokensurgeon: give a Hugging Face checkpoint another tokenizer, and prove what it cost."""

__version__ = "0.1.0"
