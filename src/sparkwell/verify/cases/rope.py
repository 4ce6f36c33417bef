"""Rotary embedding: both pairings, one or many heads, positions up to a million, strided rows."""

from functools import partial

import torch

from sparkwell.ops.rope import rope_frequencies
from sparkwell.verify.case import Case, Inputs, Maker

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _inputs(
    make: Maker, *, rows: int, heads: int, d: int, dtype: str, interleaved: bool, wide: int
) -> Inputs:
    shape = (rows, heads, d + wide) if heads else (rows, d + wide)
    inv_freq, _ = rope_frequencies(d, theta=1e4)
    return {
        "x": make.randn(*shape, dtype=DTYPES[dtype])[..., :d],
        "positions": make.randint(0, 4000, rows, dtype=torch.int64),
        "inv_freq": inv_freq.to(make.device),
        "attention_factor": 1.25,
        "interleaved": interleaved,
    }


def _case(
    rows: int, heads: int, d: int, dtype: str, interleaved: bool, wide: int = 0, size: str = "small"
) -> Case:
    sizes = {"rows": rows, "heads": heads, "d": d, "dtype": dtype, "wide": wide}
    make = partial(_inputs, **sizes, interleaved=interleaved)  # type: ignore[arg-type]
    name = f"{rows}x{heads}x{d}-{dtype}-{'pairs' if interleaved else 'halves'}"
    # sin and cos of a GPU differ from the CPU's by an ulp of angles in the thousands
    return Case("rope", name, make, size, (("rotary", dtype),))


CASES: tuple[Case, ...] = (
    _case(5, 3, 64, "fp32", True),
    _case(5, 3, 64, "fp32", False, wide=8),
    _case(3, 20, 10, "fp32", False),
    _case(3, 0, 64, "bf16", True, wide=64),
    _case(0, 4, 8, "fp32", True),
    _case(512, 64, 64, "bf16", True, wide=192, size="model"),
    _case(64, 0, 64, "bf16", True, size="model"),
)
