"""The embedded default: a small written world, seven tasks on it, and models pretrained on its text."""
