"""Activations to FP8 and NVFP4: codes and scales bit for bit, where scales are NaN too."""

from functools import partial
from typing import Any

import torch

from sparkwell.testing import assert_matches
from sparkwell.verify.case import Case, Inputs, Maker

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _inputs(
    make: Maker, *, rows: int, k: int, dtype: str, kind: str, given: float | None, group: int
) -> Inputs:
    x = make.randn(rows, k, dtype=DTYPES[dtype])
    if rows > 3 and x.device.type != "meta":
        x[0, : k // 2] = 0.0  # groups of zeros
        x[1] *= 1e-6  # below the floor
        x[2, k - 1] = float("nan")
        x[3, k // 2] = float("inf")
        x[4] *= 100.0
    inputs: Inputs = {"x": x, "activations": kind, "group": group}
    if given is not None:
        inputs["input_scale"] = make.tensor(given, torch.float32)
    return inputs


def _same(inputs: Inputs, got: Any, want: Any) -> None:
    got, want = got.dequantize().cpu(), want.dequantize().cpu()
    assert got.shape == want.shape, f"{list(got.shape)}, want {list(want.shape)}"
    same = (got == want) & (got.signbit() == want.signbit()) | got.isnan() & want.isnan()
    bad = (~same).nonzero()
    assert not len(bad), f"{len(bad)} values differ, first at {bad[0].tolist()}"


def nearly(inputs: Inputs, got: Any, want: Any) -> None:
    """Rows of other roundings before they were quantized: one code in a hundred may differ."""
    if isinstance(got, tuple):
        assert_matches(got[0], want[0], "elementwise", "bf16", label="sum")
        got, want = got[1], want[1]
    assert type(got) is type(want) and got.shape == want.shape
    x, y = got.dequantize().cpu(), want.dequantize().cpu()
    other = (x - y).abs() > 1e-5 * y.abs()
    assert other.sum() <= 1 + 0.01 * other.numel(), f"{int(other.sum())} values differ"
    # A step between codes is at most a third of an e2m1, an eighth of an e4m3; scales move too.
    far = (x - y).abs() > 0.4 * y.abs() + 0.02 * y.abs().amax(-1, keepdim=True)
    assert not bool(far.any()), f"{int(far.sum())} values are far off"


def _case(
    kind: str,
    rows: int,
    k: int,
    dtype: str = "bf16",
    *,
    given: float | None = None,
    group: int = 128,
) -> Case:
    make = partial(_inputs, rows=rows, k=k, dtype=dtype, kind=kind, given=given, group=group)
    size = "model" if rows * k > 1 << 17 else "small"
    words = (kind, f"{rows}x{k}", dtype, "given" if given else "", "" if group == 128 else group)
    name = "-".join(str(word) for word in words if word)
    return Case("quantize_activations", name, make, size, check=_same)


CASES: tuple[Case, ...] = (
    _case("fp8-token", 6, 300),
    _case("fp8-token", 5, 9000, "fp32"),
    _case("fp8-token", 0, 64),
    _case("fp8-tensor", 6, 130, given=0.004),
    _case("fp8-tensor", 5, 40, "fp16"),
    _case("fp8-group", 6, 300),
    _case("fp8-group", 5, 3000, "fp32"),
    _case("fp8-group", 5, 100, group=48),
    _case("nvfp4", 6, 304),
    _case("nvfp4", 5, 9008, "fp32"),
    _case("nvfp4", 6, 64, "fp16", given=0.002),
    _case("fp8-token", 4096, 7168),
    _case("fp8-group", 4096, 7168),
    _case("nvfp4", 4096, 4096),
    _case("fp8-token", 4096, 1024),
)
