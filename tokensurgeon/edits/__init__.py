"""Vocabularies rewritten: trimmed, extended, merged or learnt anew. Tokenizers in, tokenizers out; no weights."""
