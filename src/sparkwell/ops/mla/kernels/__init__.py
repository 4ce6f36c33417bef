"""Triton kernels of absorbed MLA, one file an algorithm."""
