"""Numerical kernels: tensors in, tensors out. They know nothing of tokens, files or recipes."""
