"""Attention kernels, one file per algorithm."""
