"""Vocabularies rewritten: trimmed, extended, merged, learnt anew. Tokenizers in, tokenizers out."""
