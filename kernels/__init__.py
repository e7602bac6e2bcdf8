"""Kernel launchers: one module per backend. They take checked tensors and touch memory."""
