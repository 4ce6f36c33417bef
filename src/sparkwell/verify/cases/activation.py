"""SwiGLU: odd widths, strided rows, large and tiny gates."""

from functools import partial

import torch

from sparkwell.verify.case import Case, Inputs, Maker

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _inputs(make: Maker, *, rows: int, width: int, dtype: str, scale: float) -> Inputs:
    return {"gate_up": make.randn(rows, 2 * width, dtype=DTYPES[dtype], scale=scale)}


def _case(rows: int, width: int, dtype: str, scale: float = 1.0, size: str = "small") -> Case:
    make = partial(_inputs, rows=rows, width=width, dtype=dtype, scale=scale)
    return Case(
        "swiglu", f"{rows}x{width}-{dtype}-{scale:g}", make, size, (("elementwise", dtype),)
    )


CASES: tuple[Case, ...] = (
    _case(3, 1, "fp32"),
    _case(3, 257, "fp32"),
    _case(2, 1500, "bf16"),
    _case(4, 33, "fp32", 40.0),
    _case(0, 8, "fp32"),
    _case(512, 2048, "bf16", size="model"),
    _case(8, 12288, "bf16", size="model"),
)
