"""Kernels of linear layers, one file an algorithm."""
