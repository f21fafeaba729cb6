"""Rival methods, one file each, all under the contract of ``r2q.quantization.method``."""
