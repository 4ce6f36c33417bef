"""Linear layers on weights of every format: each row of the table, odd sizes, strided operands;
published models' layers."""

from functools import partial

import torch

from sparkwell.formats.int4 import Int4Group
from sparkwell.formats.weights import Weight
from sparkwell.verify.case import Case, Inputs, Maker
from sparkwell.verify.weights import weight

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _weight(make: Maker, form: str, n: int, k: int) -> Weight:
    """As drawn for every op, but each zero point and each row's scale is unlike its neighbours'."""
    w = weight(make, form, n, k)
    if isinstance(w, Int4Group) and w.zeros is not None and make.device.type != "meta":
        w.zeros.copy_(torch.arange(w.zeros.numel(), device=w.device).reshape(w.zeros.shape) * 37)
        return w.changed(lambda name, t: t / 16 if name == "scales" else t)
    return w


def _inputs(make: Maker, *, form: str, shape: tuple[int, int, int], x: str, options: str) -> Inputs:
    m, n, k = shape
    inputs: Inputs = {
        "x": make.randn(m, k, dtype=DTYPES[x]),
        "weight": _weight(make, form, n, k),
    }
    if "bias" in options:
        inputs["bias"] = make.randn(2 * n, dtype=DTYPES[x])[::2]
    if "wide" in options:
        inputs["out_dtype"] = torch.float32
    for name in ("w8a8", "w4a8", "w4a4"):
        if name in options:
            inputs["arithmetic"] = name
    if "apart" in options:  # rows of the weight begin 8 bytes from where they are copied by boxes
        w = inputs["weight"]
        inputs["weight"] = w.changed(
            lambda name, t: (
                torch.nn.functional.pad(t.view(torch.uint8), (8, 8)).view(t.dtype)[:, 8:-8]
                if name == "values"
                else t
            )
        )
    if "odd" in options:  # pairs of x that are not aligned
        inputs["x"] = make.randn(m, k + 1, dtype=DTYPES[x])[:, 1:]
    return inputs


def _case(form: str, m: int, n: int, k: int, x: str = "bf16", options: str = "") -> Case:
    make = partial(_inputs, form=form, shape=(m, n, k), x=x, options=options)
    exact = x == "fp32" or "wide" in options
    # Those that are widened to half precision first, by the table's last row.
    unaligned = k % (32 if "fp4" in form else 16)
    many = 256 if form == "nvfp4" else 96
    rounded = x == "bf16" and (m > many or (form == "int4-64" and m > 16) or unaligned)
    rounded = rounded and not any(name in options for name in ("w8a8", "w4a8", "w4a4"))
    limit = ("matmul", "rounded" if rounded else "fp32" if exact else "bf16")
    if "w8a8" in options and exact:
        limit = ("matmul", "fp8-units")
    if "w4a8" in options and form == "nvfp4":
        limit = ("matmul", "expanded")
    size = "small" if n * k < 1 << 18 else "model"
    name = "-".join(filter(None, (form, f"{m}x{n}x{k}", x, *options.split())))
    return Case("linear", name, make, size, (limit,))


FP4 = ((6144, 4096), (28672, 4096), (4096, 14336), (2048, 6144))  # n, k
FP8 = ((7168, 2048), (4096, 7168), (24576, 1536))
ROWS = (1, 4, 16, 64, 128, 256, 4096)

SMALL: tuple[Case, ...] = (
    _case("nvfp4", 1, 70, 320, "bf16", "bias"),
    _case("nvfp4", 3, 64, 1024, "fp16", "wide"),
    _case("nvfp4", 5, 130, 512, "bf16", "wide"),
    _case("nvfp4", 16, 65, 288, "bf16", "odd"),
    _case("nvfp4", 40, 130, 416, "bf16"),
    _case("nvfp4", 70, 140, 224, "fp16", "wide"),
    _case("nvfp4", 2, 33, 48, "fp32", "bias"),
    _case("nvfp4", 2100, 10, 48, "bf16", "wide"),
    _case("nvfp4", 2, 20, 304, "bf16"),
    _case("nvfp4", 0, 20, 48, "bf16"),
    # Columns turned, all of K in a block and in parts.
    _case("nvfp4", 12, 70, 256, "bf16", "bias"),
    _case("nvfp4", 40, 130, 512, "fp16", "wide bias"),
    _case("nvfp4", 9, 20, 4096, "bf16", "odd"),
    _case("nvfp4", 100, 70, 256, "bf16", "wide"),
    _case("nvfp4", 130, 40, 256, "bf16"),
    _case("nvfp4", 2, 20, 8256, "bf16", "wide bias"),
    # K shared among the warps of a block, and among blocks, evenly and not.
    _case("nvfp4", 2, 20, 4128, "bf16", "wide bias"),
    _case("nvfp4", 12, 20, 4096, "bf16", "wide"),
    _case("nvfp4", 3, 4100, 32, "bf16", "wide"),
    _case("mxfp4", 9, 20, 4128, "bf16", "wide"),
    _case("int4", 2, 20, 4224, "bf16", "wide bias"),
    _case("fp8-block", 2, 140, 1808, "bf16", "wide"),
    _case("fp8-rows", 2, 20, 2112, "bf16", "wide bias"),
    _case("mxfp4", 2, 70, 352, "bf16", "bias"),
    _case("mxfp4", 9, 66, 512, "bf16", "wide"),
    _case("mxfp4", 3, 66, 64, "fp16"),
    _case("int4", 2, 70, 768, "bf16", "bias"),
    _case("int4", 11, 70, 640, "fp16", "wide"),
    _case("int4", 40, 70, 256, "bf16"),
    _case("int4-64", 7, 66, 320, "bf16", "wide"),
    _case("int4-64", 20, 66, 128, "bf16"),
    _case("int4-32", 5, 66, 224, "bf16", "wide"),
    _case("int4-ordered", 3, 40, 96, "bf16", "wide"),
    _case("int4", 2, 40, 128, "fp32"),
    _case("int4-ordered", 3, 40, 96, "fp32"),
    _case("fp8-block", 3, 140, 400, "bf16", "bias"),
    _case("fp8-block", 10, 140, 304, "fp16", "wide"),
    _case("fp8-block", 33, 140, 208, "bf16"),
    _case("fp8-block", 65, 130, 272, "bf16", "wide"),
    _case("fp8-block", 2, 140, 301, "bf16"),
    _case("fp8-block-64", 2, 100, 208, "bf16"),
    _case("fp8-block-64", 2, 70, 100, "fp32", "bias"),
    _case("fp8-rows", 2, 70, 528, "bf16", "bias"),
    _case("fp8-rows", 12, 70, 320, "fp16", "wide"),
    _case("fp8-rows", 2, 70, 513, "bf16", "bias"),
)
QUANTIZED: tuple[Case, ...] = (
    _case("fp8-block", 3, 140, 400, "bf16", "w8a8 bias"),
    _case("fp8-block", 16, 300, 608, "fp16", "w8a8 wide"),
    _case("fp8-block", 40, 140, 304, "fp32", "w8a8"),
    _case("fp8-block", 70, 130, 272, "bf16", "w8a8 wide bias"),
    *(
        _case(form, m, 130, 144, "bf16", "w8a8 apart")
        for form in ("fp8-block", "fp8-rows")
        for m in (3, 33, 70)
    ),
    _case("fp8-rows", 2, 70, 528, "bf16", "w8a8 bias"),
    _case("fp8-rows", 33, 140, 304, "fp16", "w8a8 wide"),
    _case("fp8-rows", 130, 40, 144, "bf16", "w8a8"),
    _case("fp8-rows", 0, 40, 144, "bf16", "w8a8"),
    _case("fp8-block", 3, 600, 144, "bf16", "w8a8 wide"),
    _case("fp8-block", 5, 2200, 112, "bf16", "w8a8 wide bias"),
    _case("fp8-rows", 12, 140, 528, "bf16", "w8a8 bias"),
    _case("fp8-block", 2200, 1040, 272, "bf16", "w8a8 bias"),
    _case("fp8-block", 2200, 1040, 272, "fp16", "w8a8 wide"),
    _case("fp8-rows", 2200, 1040, 272, "bf16", "w8a8 wide bias"),
    _case("nvfp4", 3, 140, 304, "bf16", "w4a4 bias"),
    _case("nvfp4", 17, 130, 1040, "fp16", "w4a4 wide"),
    _case("nvfp4", 70, 140, 512, "bf16", "w4a4"),
    _case("nvfp4", 0, 40, 128, "bf16", "w4a4"),
    _case("nvfp4", 3, 70, 1040, "bf16", "w4a8 bias"),
    _case("nvfp4", 33, 140, 304, "fp16", "w4a8 wide"),
    _case("nvfp4", 70, 40, 512, "bf16", "w4a8"),
    _case("mxfp4", 3, 70, 1056, "bf16", "w4a8 wide bias"),
    _case("mxfp4", 40, 140, 352, "bf16", "w4a8"),
)
MODEL: tuple[Case, ...] = tuple(
    _case(form, m, n, k)
    for forms, shapes in (
        (("nvfp4", "int4", "mxfp4"), FP4),
        (("fp8-block", "fp8-rows"), FP8),
    )
    for form in forms
    for n, k in shapes
    for m in ROWS
) + (
    _case("nvfp4", 3, 8500, 1056, "bf16", "bias"),
    _case("nvfp4", 2, 8500, 1024, "fp16", "wide bias"),
    # Blocks that share tiles unevenly, the last tile not full.
    _case("nvfp4", 5, 28700, 3072, "bf16", "wide bias"),
    _case("nvfp4", 12, 9700, 4096, "fp16", "odd bias"),
)
MODEL_QUANTIZED: tuple[Case, ...] = (
    (  # few rows of FP8: sizes that end within a tile, blocks with several tiles
        _case("fp8-block", 3, 2200, 1168, "bf16", "w8a8 bias"),
        _case("fp8-rows", 7, 4130, 400, "fp16", "w8a8 wide"),
        _case("fp8-block", 11, 4130, 2064, "bf16", "w8a8 bias"),
        _case("fp8-block", 6, 25700, 400, "bf16", "w8a8 wide bias"),
        _case("fp8-rows", 13, 25700, 272, "bf16", "w8a8 bias"),
    )
    + tuple(
        _case(form, m, n, k, "bf16", "w8a8")
        for form in ("fp8-block", "fp8-rows")
        for n, k in FP8
        for m in ROWS
    )
    + tuple(
        _case("nvfp4", m, n, k, "bf16", arithmetic)
        for arithmetic in ("w4a4", "w4a8")
        for n, k in FP4
        for m in ROWS
    )
    + tuple(_case("mxfp4", m, 6144, 4096, "bf16", "w4a8") for m in ROWS)
)
CASES = (
    *SMALL,
    *QUANTIZED,
    *MODEL,
    *MODEL_QUANTIZED,
    *(_case(form, 1, 6144, 4096) for form in ("int4-64", "int4-32", "int4-ordered")),
)
