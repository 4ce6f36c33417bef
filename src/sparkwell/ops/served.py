"""Formats of weights that kernels multiply as they are stored; the others a loader widens.

By the names of `formats.kind`.  Plain tensors always are; on a CPU the references take all formats.
"""

LINEAR: frozenset[str] = frozenset({"Fp8Block", "Fp8Rows", "Nvfp4", "Mxfp4", "Int4Group"})
EXPERTS: frozenset[str] = LINEAR
