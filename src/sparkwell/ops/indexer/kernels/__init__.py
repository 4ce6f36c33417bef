"""Triton kernels of the lightning indexer: scores, top-k, slots."""
