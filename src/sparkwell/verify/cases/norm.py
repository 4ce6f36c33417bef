"""The norms: rows of every length class, zero rows, rows as small as eps."""

from functools import partial

import torch

from sparkwell.verify.case import Case, Inputs, Maker
from sparkwell.verify.cases.quantize import nearly

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SPREAD = 257


def _inputs(make: Maker, *, op: str, rows: int, d: int, dtype: str, scale: float) -> Inputs:
    x = make.randn(rows, d, dtype=DTYPES[dtype], scale=scale)
    every = 3 if d == SPREAD else 1  # a weight of elements apart from each other
    weight, shift = make.randn(d * every, dtype=DTYPES[dtype]), make.randn(d * every)
    inputs: Inputs = {"x": x, "weight": weight[::every], "eps": 1e-6}
    if op == "add_rms_norm":
        inputs["delta"] = make.randn(2 * rows, d, dtype=DTYPES[dtype], scale=scale)[::2]
    return inputs | ({"bias": shift[::every]} if op == "layer_norm" else {})


def _case(
    op: str, rows: int, d: int, dtype: str = "fp32", scale: float = 1.0, size: str = "small"
) -> Case:
    make = partial(_inputs, op=op, rows=rows, d=d, dtype=dtype, scale=scale)
    limit = ("elementwise", "fp32" if dtype == "fp32" else "bf16")
    results = 2 if op == "add_rms_norm" else 1
    return Case(op, f"{rows}x{d}-{dtype}-{scale:g}", make, size, (limit,) * results)


def _quantized(make: Maker, *, op: str, rows: int, d: int, dtype: str, kind: str) -> Inputs:
    plain = op.removesuffix("_quantized")
    inputs = _inputs(make, op=plain, rows=rows, d=d, dtype=dtype, scale=1.0)
    if "given" in kind:
        inputs["input_scale"] = make.tensor(0.004, torch.float32)
    if "group" in kind and d == SPREAD:
        inputs["group"] = 48  # no power of two
    return inputs | {"activations": kind.split()[0]}


def _quantized_case(op: str, kind: str, rows: int, d: int, dtype: str = "bf16") -> Case:
    make = partial(_quantized, op=op, rows=rows, d=d, dtype=dtype, kind=kind)
    size = "model" if rows > 100 else "small"
    return Case(op, f"{rows}x{d}-{dtype}-{kind.replace(' ', '-')}", make, size, check=nearly)


QUANTIZED: tuple[Case, ...] = tuple(
    _quantized_case(op, *arguments)
    for op in ("rms_norm_quantized", "add_rms_norm_quantized")
    for arguments in (
        ("fp8-token", 3, 257),
        ("fp8-tensor given", 4, 512, "fp16"),
        ("fp8-group", 3, 257),
        ("fp8-group", 2, 1000),
        ("fp8-group", 3, 64),
        ("fp8-group", 2, 5000, "fp32"),
        ("nvfp4", 3, 1040),
        ("nvfp4 given", 2, 48, "fp32"),
        ("nvfp4", 0, 64),
        ("fp8-group", 4096, 7168),
        ("fp8-token", 4096, 4096),
        ("nvfp4", 4096, 4096),
        ("nvfp4", 4096, 512),
    )
)
CASES: tuple[Case, ...] = QUANTIZED + tuple(
    _case(op, *arguments)
    for op in ("rms_norm", "layer_norm", "add_rms_norm")
    for arguments in (
        (5, 1),
        (3, 257),
        (4, 512, "fp16"),
        (2, 1000, "bf16"),
        (3, 128, "fp32", 1e-3),  # as small as eps: it changes the answer
        (2, 5000),
        (0, 64),
        (4096, 6144, "bf16", 1.0, "model"),
        (64, 512, "bf16", 1.0, "model"),
    )
)
