"""Reading and writing Hugging Face checkpoints: tensors as bytes, configs as JSON."""
