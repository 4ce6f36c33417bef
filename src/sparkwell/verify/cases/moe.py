"""Experts with float weights: odd sizes, an expert named twice, strided rows."""

from functools import partial

import torch

from sparkwell.verify.case import Case, Inputs, Maker

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _inputs(
    make: Maker, *, rows: int, num_experts: int, topk: int, hidden: int, width: int, dtype: str
) -> Inputs:
    kind = DTYPES[dtype]
    ids = make.randint(0, num_experts, rows, topk, dtype=torch.int64)
    return {
        "x": make.randn(rows, hidden, dtype=kind),
        "ids": ids,
        "weights": make.randn(rows, topk),
        "gate_up": make.randn(num_experts, 2 * width, hidden, dtype=kind, scale=hidden**-0.5),
        "down": make.randn(num_experts, hidden, width, dtype=kind, scale=width**-0.5),
    }


def _case(
    rows: int,
    num_experts: int,
    topk: int,
    hidden: int,
    width: int,
    dtype: str,
    size: str = "small",
) -> Case:
    sizes = {"rows": rows, "num_experts": num_experts, "topk": topk, "hidden": hidden}
    make = partial(_inputs, **sizes, width=width, dtype=dtype)  # type: ignore[arg-type]
    name = f"{rows}x{hidden}-{num_experts}x{width}-top{topk}-{dtype}"
    return Case("experts", name, make, size, (("matmul", dtype),))


CASES: tuple[Case, ...] = (
    _case(3, 4, 2, 40, 24, "fp32"),
    _case(2, 3, 5, 130, 17, "fp32"),
    _case(2, 2, 2, 64, 32, "bf16"),
    _case(0, 2, 1, 16, 8, "fp32"),
    _case(1, 8, 4, 600, 160, "fp32"),
    _case(8, 8, 4, 256, 384, "bf16", "model"),
)
