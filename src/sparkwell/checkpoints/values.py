"""What scales may be: the checks of their values, and how each kind becomes fp32."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sparkwell.checkpoints.header import TensorInfo
from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.checkpoints.stored import mismatch
from sparkwell.errors import BadCheckpoint
from sparkwell.lazy import later

if TYPE_CHECKING:
    import torch
else:  # headers and configs are understood without it
    torch = later("torch")

NAN_E8M0 = 255
SMALLEST = 2.0**-127  # whose inverse is still an fp32 number
NO_SCALES = "scales are not numbers of at least 0"
NO_FACTOR = "scale of the whole tensor is no positive number"
NO_INPUT_SCALE = "scale of the activations is no positive number"


def check_scales(info: TensorInfo, scales: torch.Tensor) -> None:
    """Raises BadCheckpoint for scales that are NaN, infinite or negative; -0 is 0.

    scales: as they are in the file: floats, e4m3, or e8m0 as such or as bytes.
    """
    if scales.dtype in (torch.uint8, torch.float8_e8m0fnu):
        bad = scales.view(torch.uint8) == NAN_E8M0
    elif scales.dtype == torch.float8_e4m3fn:
        raw = scales.view(torch.uint8)
        bad = (raw > 0x80) | (raw == 0x7F)
    else:
        bad = ~(torch.isfinite(scales) & (scales >= 0))
    if not bool(bad.any()):
        return
    at = bad.nonzero()[0].tolist()
    value = scales[tuple(at)]
    shown = value.item() if value.dtype != torch.uint8 else f"e8m0 {value.item()} (NaN)"
    came = f"{shown} at {at}, one of {int(bad.sum())} such scales"
    raise mismatch(NO_SCALES, info, came, "finite, >= 0")


def read_scales(checkpoint: Checkpoint, info: TensorInfo) -> torch.Tensor:
    """The checked scales, in their own dtype."""
    scales = checkpoint.read(info.name)
    check_scales(info, scales)
    return scales


def check_factor(info: TensorInfo, value: float, *, problem: str = NO_FACTOR) -> None:
    """Raises BadCheckpoint unless it is finite and above 0, and so is its inverse in fp32."""
    if not (math.isfinite(value) and value >= SMALLEST):
        raise mismatch(problem, info, str(value), "finite, > 0")


def read_factor(checkpoint: Checkpoint, info: TensorInfo, *, inverse: bool) -> torch.Tensor:
    """The checked single value as an fp32 multiplier []; inverse: the file holds a divisor."""
    value = checkpoint.read(info.name).float().reshape(())
    check_factor(info, value.item())
    return value.reciprocal() if inverse else value


def read_input_scale(
    checkpoint: Checkpoint, info: TensorInfo | None, *, inverse: bool
) -> torch.Tensor | None:
    """The scale of the activations as a multiplier []; None where it is absent or no scale.

    An expert that calibration never reached has 0, infinity or nothing there.  What multiplies
    without a fixed scale takes one of the activations themselves, which is as exact or more so.
    """
    if info is None:
        return None
    value = checkpoint.read(info.name).float().reshape(())
    try:
        check_factor(info, value.item(), problem=NO_INPUT_SCALE)
    except BadCheckpoint:
        return None
    return value.reciprocal() if inverse else value
