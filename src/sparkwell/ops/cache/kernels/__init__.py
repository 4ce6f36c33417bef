"""Kernels that make a row and write it to its page in one launch."""
