"""Compile the Triton kernels beside this file for three GPUs: python compile_triton.py FOLDER."""

import os
import sys
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).parent))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_kernels import product, scaled

WORK = [
    ("product-bf16", product, {"a": "*bf16", "b": "*bf16", "c": "*fp32"}, (80, 90, 120)),
    ("product-fp8", product, {"a": "*fp8e4nv", "b": "*fp8e4nv", "c": "*fp32"}, (90, 120)),
    ("scaled", scaled, {"a": "*u8", "sa": "*u8", "b": "*u8", "sb": "*u8", "c": "*fp32"}, (120,)),
]


def main() -> None:
    folder = Path(sys.argv[1])
    for name, kernel, signature, targets in WORK:
        for sm in targets:
            constants = {"n": 128, "k": 128}
            source = ASTSource(
                kernel, {**signature, "n": "constexpr", "k": "constexpr"}, constexprs=constants
            )
            made = triton.compile(source, target=GPUTarget("cuda", sm, 32))
            (folder / f"{name}-{sm}.cubin").write_bytes(made.asm["cubin"])
            (folder / f"{name}-{sm}.ptx").write_text(made.asm["ptx"])


main()
