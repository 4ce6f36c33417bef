"""Kernels of sampling, one file an algorithm."""
