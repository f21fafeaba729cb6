"""Fast paths for a GPU, each with a plain PyTorch twin that defines it."""
