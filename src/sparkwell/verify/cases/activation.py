"""SwiGLU: odd widths, strided rows, large and tiny gates."""

from functools import partial

import torch

from sparkwell.verify.case import Case, Inputs, Maker
from sparkwell.verify.cases.quantize import nearly

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _inputs(make: Maker, *, rows: int, width: int, dtype: str, scale: float) -> Inputs:
    return {"gate_up": make.randn(rows, 2 * width, dtype=DTYPES[dtype], scale=scale)}


def _case(rows: int, width: int, dtype: str, scale: float = 1.0, size: str = "small") -> Case:
    make = partial(_inputs, rows=rows, width=width, dtype=dtype, scale=scale)
    return Case(
        "swiglu", f"{rows}x{width}-{dtype}-{scale:g}", make, size, (("elementwise", dtype),)
    )


def _quantized(make: Maker, *, rows: int, width: int, dtype: str, kind: str) -> Inputs:
    inputs = _inputs(make, rows=rows, width=width, dtype=dtype, scale=1.0)
    if "given" in kind:
        inputs["input_scale"] = make.tensor(0.004, torch.float32)
    if "group" in kind and width == 257:
        inputs["group"] = 48  # no power of two
    return inputs | {"activations": kind.split()[0]}


def _quantized_case(kind: str, rows: int, width: int, dtype: str = "bf16") -> Case:
    make = partial(_quantized, rows=rows, width=width, dtype=dtype, kind=kind)
    name = f"{rows}x{width}-{dtype}-{kind.replace(' ', '-')}"
    size = "model" if rows > 100 else "small"
    return Case("swiglu_quantized", name, make, size, check=nearly)


CASES: tuple[Case, ...] = (
    _quantized_case("fp8-token", 3, 257),
    _quantized_case("fp8-token", 2, 6000, "fp32"),
    _quantized_case("fp8-tensor given", 3, 1500),
    _quantized_case("fp8-group", 3, 257),
    _quantized_case("fp8-group", 3, 1500, "fp32"),
    _quantized_case("nvfp4", 3, 1040),
    _quantized_case("nvfp4 given", 2, 1040),
    _quantized_case("nvfp4", 0, 64),
    _quantized_case("fp8-token", 4096, 18432),
    _quantized_case("fp8-token", 512, 2048),
    _quantized_case("fp8-group", 4096, 2048),
    _quantized_case("nvfp4", 4096, 14336),
    _case(3, 1, "fp32"),
    _case(3, 257, "fp32"),
    _case(2, 1500, "bf16"),
    _case(4, 33, "fp32", 40.0),
    _case(0, 8, "fp32"),
    _case(512, 2048, "bf16", size="model"),
    _case(8, 12288, "bf16", size="model"),
)
