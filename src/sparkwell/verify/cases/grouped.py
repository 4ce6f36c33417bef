"""Products by groups of rows: the three layouts, groups without rows, rows of no group, FP8 rows,
a sum that goes on; the shapes of DeepSeek-V3's and GLM-5's experts."""

from functools import partial
from typing import Any

import torch

from sparkwell.formats.fp8 import Fp8Block, quantize_fp8_rows
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.testing import assert_matches
from sparkwell.verify.case import Case, Inputs, Maker
from sparkwell.verify.weights import FLOATS, weight


def _rows(make: Maker, dtype: str, *shape: int) -> torch.Tensor | Fp8Block | Nvfp4:
    """dtype "fp8": quantized each 128 columns.  "fp4": NVFP4."""
    if dtype == "fp4":
        made = weight(make, "nvfp4", *shape)
        assert isinstance(made, Nvfp4)
        return made
    if dtype != "fp8":
        return make.randn(*shape, dtype=FLOATS[dtype])
    values, scales = quantize_fp8_rows(make.randn(*shape), 128)
    return Fp8Block(values.reshape(shape), scales, (1, 128))


def _inputs(
    make: Maker,
    *,
    counts: tuple[int, ...],
    space: int,
    n: int,
    k: int,
    form: str,
    dtype: str,
    layout: str,
    alignment: int,
    add: bool,
    wide: bool,
) -> Inputs:
    """space: rows of a group for "counted", otherwise rows after the last group's.

    wide: the result is fp32.
    """
    padded = [-(-count // alignment) * alignment for count in counts]
    total = sum(padded) + space
    shape: tuple[int, ...]
    if layout == "counted":
        shape, found = (len(counts), space), list(counts)
    elif layout == "ends":
        starts = [sum(padded[:i]) for i in range(len(counts))]
        shape, found = (total,), [a + b for a, b in zip(starts, counts, strict=True)]
    else:
        ids = [
            [i] * c + [-1] * (p - c) for i, (c, p) in enumerate(zip(counts, padded, strict=True))
        ]
        shape, found = (total,), [g for group in ids for g in group] + [-1] * space
    groups = torch.tensor(found, dtype=torch.int32, device=make.device)
    x = _rows(make, dtype, *shape, k)
    if isinstance(x, torch.Tensor) and layout == "rows" and make.device.type != "meta":
        x[groups < 0] = float("nan")
    inputs: Inputs = {"x": x, "weight": weight(make, form, len(counts), n, k), "groups": groups}
    if add:
        inputs["add"] = torch.ones(*shape, n, device=make.device)
    if add or wide:
        inputs["out_dtype"] = torch.float32
    return inputs | {"layout": layout, "alignment": alignment}


def _check(inputs: Inputs, got: Any, want: Any, *, tolerance: tuple[str, str]) -> None:
    """The rows that the layout says something about."""
    groups, layout, alignment = inputs["groups"], inputs["layout"], inputs["alignment"]
    if layout == "counted":
        places = torch.arange(got.shape[1], device=got.device) < groups[:, None]
    else:
        last = -(-int(groups[-1]) // alignment) * alignment if layout == "ends" else len(got)
        places = torch.arange(len(got), device=got.device) < last
    assert_matches(got[places], want.to(got.device)[places], *tolerance, label="grouped_linear")


def _case(
    counts: tuple[int, ...],
    n: int,
    k: int,
    form: str,
    dtype: str,
    layout: str,
    *,
    alignment: int = 16,
    space: int = 0,
    add: bool = False,
    wide: bool = False,
    size: str = "small",
) -> Case:
    make = partial(
        _inputs, counts=counts, space=space, n=n, k=k, form=form, dtype=dtype, layout=layout,
        alignment=alignment, add=add, wide=wide,
    )  # fmt: skip
    num = f"{sum(counts)}in{len(counts)}x{alignment}"
    name = f"{layout}-{num}-{n}x{k}-{form}-{dtype}{'-add' * add}{'-wide' * wide}"
    tolerance = ("matmul", "fp32" if dtype == "fp32" else "bf16")
    return Case("grouped_linear", name, make, size, check=partial(_check, tolerance=tolerance))


def _spread(groups: int, rows: int) -> tuple[int, ...]:
    """Counts about `rows`, no two alike."""
    return tuple(rows - rows // 8 + (7 * i) % max(1, rows // 4) for i in range(groups))


_BACK = (576, 7168)  # n, k turned round: a model's backward pass
_EXPERTS = ((4096, 7168), (7168, 2048), (4096, 6144), (6144, 2048))

CASES: tuple[Case, ...] = (
    _case((5, 0, 17), 72, 64, "bf16", "bf16", "rows", space=3),
    _case((16, 1), 33, 40, "fp32", "fp32", "rows", add=True),
    _case((5, 0, 40), 64, 128, "fp8-block", "fp8", "rows", alignment=64, space=70),
    _case((5, 0, 40, 2), 64, 128, "fp8-block", "fp8", "ends", alignment=32, space=70),
    _case((130,), 64, 128, "fp8-block", "fp8", "ends", alignment=128),
    _case((3, 9), 50, 192, "fp8-block", "fp8", "counted", space=9),  # k ends inside a group
    _case((200,), 64, 192, "fp8-block", "fp8", "ends", alignment=128),
    _case((200,), 64, 192, "fp8-block", "fp8", "ends", alignment=128, add=True),
    _case((130,), 200, 256, "fp8-block", "fp8", "rows", alignment=128, wide=True),
    _case((3, 20), 136, 256, "nvfp4", "fp4", "counted", space=20),
    _case((40, 70), 72, 512, "nvfp4", "fp4", "ends", alignment=64),
    _case((130,), 136, 256, "nvfp4", "fp4", "rows", alignment=128),
    _case((3, 20), 50, 64, "nvfp4", "bf16", "ends", space=40),
    _case((3, 0, 18), 72, 256, "fp8-block", "fp8", "counted", space=18, add=True),
    _case((2, 9), 40, 128, "mxfp4", "bf16", "counted", space=9),
    _case((0, 0), 40, 64, "bf16", "bf16", "counted", space=4),
    _case(_spread(8, 4096), 4096, 6144, "nvfp4", "fp4", "rows", alignment=128, size="model"),
    *(
        _case(counts, _BACK[1], _BACK[0], "fp8-block", "fp8", "rows", alignment=128, size="model")
        for counts in ((20,), (4096,))
    ),
    *(
        _case(_spread(groups, rows), n, k, "fp8-block", "fp8", layout, alignment=128, space=space,
              size="model")
        for n, k in _EXPERTS
        for groups, rows, layout, space in (
            (8, 4096, "rows", 0), (8, 1024, "ends", 0), (32, 192, "counted", 4096),
            (32, 20, "counted", 4096),
        )
    ),
)  # fmt: skip
