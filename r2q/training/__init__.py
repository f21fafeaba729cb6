"""Quantization-aware training: fake quantization of any weight method, distillation losses, data, the trainer.

Nothing is imported here, so that :mod:`r2q.training.options` can be read without torch.
"""
