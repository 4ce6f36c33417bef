"""Measurements: kernels beside their peers and the machine's ceilings; soaks; their records."""
