"""The proof: what was done, what it cost, and how it was checked. Numbers and text only, no tensors."""
