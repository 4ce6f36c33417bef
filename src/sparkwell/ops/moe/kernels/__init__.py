"""Kernels of the mixture of experts, one file an algorithm."""
