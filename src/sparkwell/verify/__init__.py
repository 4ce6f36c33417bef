"""Proof of kernels: every row compiled for every target, run under the interpreter or on a GPU."""
