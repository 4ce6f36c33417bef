"""Experts in every format: one token, few and many a expert, odd sizes, an expert named twice or
by everybody, strided rows, a range of more experts.  Published models' layers, by tokens."""

from functools import partial

import torch

from sparkwell.verify.case import Case, Inputs, Maker
from sparkwell.verify.weights import FLOATS, weight


def _inputs(
    make: Maker,
    *,
    rows: int,
    topk: int,
    shape: tuple[int, int, int],
    form: str,
    dtype: str,
    back: str,
    first: int | None,
    one: bool,
    arithmetic: str,
) -> Inputs:
    num_experts, hidden, width = shape
    # Of a range of experts: as many before it, and as many after it.
    low, high = (
        (0, num_experts) if first is None else (first - num_experts, first + 2 * num_experts)
    )
    ids = make.randint(low, high, rows, topk, dtype=torch.int64)
    if one and make.device.type != "meta":
        ids.fill_(num_experts - 1)
    inputs: Inputs = {
        "x": make.randn(rows, hidden, dtype=FLOATS[dtype]),
        "ids": ids,
        "weights": make.randn(rows, topk),
        "gate_up": weight(make, form, num_experts, 2 * width, hidden),
        "down": weight(make, back, num_experts, hidden, width),
    }
    if arithmetic:
        inputs["arithmetic"] = arithmetic
    return inputs if first is None else inputs | {"first_expert": first}


def _case(
    rows: int,
    topk: int,
    shape: tuple[int, int, int],
    form: str,
    dtype: str = "",
    *,
    back: str = "",
    first: int | None = None,
    one: bool = False,
    arithmetic: str = "",
    size: str = "small",
) -> Case:
    """shape: experts, hidden, width.  back: format of the down projection; "": the same.

    first: the range of experts begins there.  one: every token names the last expert only.
    """
    dtype = dtype or (form if form in FLOATS else "bf16")
    make = partial(
        _inputs, rows=rows, topk=topk, shape=shape, form=form, dtype=dtype, back=back or form,
        first=first, one=one, arithmetic=arithmetic,
    )  # fmt: skip
    num_experts, hidden, width = shape
    words = [
        f"{rows}x{hidden}",
        f"{num_experts}x{width}",
        f"top{topk}",
        form,
        back,
        dtype,
        arithmetic,
    ]
    words += [f"from{first}"] * (first is not None) + ["one"] * one
    name = "-".join(word for word in words if word)
    return Case(
        "experts",
        name,
        make,
        size,
        (("experts", {"w8a8": "fp8", "w4a4": "fp4"}.get(arithmetic, dtype)),),
    )


_V3, _GLM, _OSS, _QWEN = (256, 7168, 2048), (256, 6144, 2048), (128, 2880, 2880), (128, 2048, 768)
_MODELS = (
    (8, _V3, ("bf16", "fp8-block")),
    (8, _GLM, ("nvfp4",)),
    (4, _OSS, ("mxfp4",)),
    (8, _QWEN, ("fp8-rows", "int4")),
)

CASES: tuple[Case, ...] = (
    _case(3, 2, (4, 40, 24), "fp32"),
    _case(2, 5, (3, 130, 17), "fp32"),
    _case(1, 4, (8, 200, 80), "fp32"),
    _case(0, 1, (2, 16, 8), "fp32"),
    _case(2, 2, (2, 64, 32), "bf16"),
    _case(5, 3, (4, 70, 33), "bf16"),  # rows that nothing aligns
    _case(3, 2, (3, 64, 64), "fp32", "bf16"),
    _case(70, 2, (17, 64, 64), "bf16"),  # more pairs than a block sorts; experts nobody names
    _case(130, 2, (2, 64, 64), "bf16"),
    _case(40, 2, (3, 64, 64), "fp16", one=True),
    *(
        _case(rows, 2, shape, form, dtype)
        for form, dtype in (
            ("fp8-block", "bf16"), ("fp8-rows", "fp16"), ("nvfp4", "bf16"), ("mxfp4", "fp16"),
            ("int4-64", "bf16"),
        )
        for rows, shape in ((1, (5, 128, 64)), (4, (3, 64, 192)), (24, (2, 64, 64)))
    ),
    *(
        _case(2, 2, (3, 128, 96), form, "fp32")
        for form in ("fp8-block", "nvfp4", "mxfp4", "int4-32")
    ),
    _case(3, 2, (2, 192, 160), "fp8-block-64"),
    _case(3, 2, (2, 128, 64), "nvfp4", "fp16"),
    _case(3, 2, (2, 128, 64), "mxfp4", "bf16"),
    _case(3, 2, (2, 128, 64), "int4-ordered", "fp16"),
    _case(66, 2, (1, 128, 64), "int4-64", "bf16"),
    # Streams: rows of 8 and of 16, parts of the columns, outputs that do not fill a unit, one
    # product of the two only, an expert with more rows than a tile, a range of experts.
    *(
        _case(rows, topk, shape, "nvfp4", dtype)
        for rows, topk, shape, dtype in (
            (1, 3, (5, 256, 512), "bf16"), (5, 2, (4, 512, 256), "fp16"),
            (3, 2, (4, 256, 96), "bf16"), (3, 2, (4, 192, 256), "bf16"),
            (24, 2, (4, 256, 256), "bf16"),
        )
    ),
    _case(12, 2, (9, 256, 256), "nvfp4", "bf16", one=True),
    _case(9, 3, (4, 256, 256), "nvfp4", "bf16", first=3),
    _case(70, 2, (40, 256, 256), "nvfp4", "bf16"),
    _case(24, 8, (64, 1024, 512), "nvfp4", "bf16", size="model"),  # more units than blocks
    _case(2, 2, (2, 64, 128), "nvfp4", back="fp8-block"),
    _case(9, 3, (4, 64, 64), "bf16", first=3),
    _case(1, 12, (3, 128, 64), "nvfp4", first=7),
    *(
        _case(rows, 2, shape, "fp8-block", dtype, arithmetic="w8a8")
        for rows, shape, dtype in (
            (1, (4, 128, 128), "bf16"), (5, (2, 256, 128), "fp16"), (24, (2, 128, 128), "bf16"),
            (66, (1, 128, 128), "bf16"),
        )
    ),
    *(
        _case(rows, 8, _V3, "fp8-block", arithmetic="w8a8", size="model")
        for rows in (64, 1024, 4096)
    ),
    *(
        _case(rows, 2, (2, 256, 256), "nvfp4", arithmetic="w4a4") for rows in (1, 24, 66)
    ),
    *(
        _case(rows, 8, _GLM, "nvfp4", arithmetic="w4a4", size="model")
        for rows in (64, 1024, 4096)
    ),
    _case(8, 6, (64, 2048, 1408), "fp32", size="model"),
    _case(8, 8, _QWEN, "int4-32", size="model"),
    *(
        _case(rows, topk, shape, form, size="model")
        for topk, shape, forms in _MODELS
        for form in forms
        for rows in (1, 8, 64, 1024, 4096)
    ),
)  # fmt: skip
