"""Weights of every format for cases: random codes, scales of a usual size, on any device.

Codes come as bytes, so that a published model's stack costs no more memory than it has.
"""

import math
from collections.abc import Callable
from functools import partial

import torch

from sparkwell.formats.fp8 import Fp8Block, Fp8Rows
from sparkwell.formats.int4 import Int4Group
from sparkwell.formats.mxfp4 import Mxfp4
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.formats.weights import QuantizedTensor, Weight
from sparkwell.verify.case import Maker

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LARGE = 1 << 24  # values of a weight that is drawn in its own type and lies alone
MARGIN = 16  # elements beside a hostile tensor's rows: they keep 16-byte rows aligned


def _bytes(make: Maker, *shape: int) -> torch.Tensor:
    options = {"dtype": torch.uint8, "device": make.device, "generator": make.generator}
    return torch.randint(0, 256, shape, **options)  # type: ignore[call-overload]


def _scales(make: Maker, *shape: int, size: float) -> torch.Tensor:
    """Positive numbers between 0.5 and 1.5 times `size`, fp32."""
    unit = torch.rand(shape, device=make.device, generator=make.generator)
    return (unit + 0.5) * size


def _e4m3(make: Maker, *shape: int, sign: int = 0x80) -> torch.Tensor:
    """Every mantissa of e4m3 between 0.5 and 1.9, of both signs, or of none."""
    return ((_bytes(make, *shape) & (sign | 0x0F)) | 0x30).view(torch.float8_e4m3fn)


def _fp8_block(make: Maker, *shape: int, block: tuple[int, int] = (128, 128)) -> Fp8Block:
    *lead, n, k = shape
    grid = (-(-n // block[0]), -(-k // block[1]))
    return Fp8Block(_e4m3(make, *shape), _scales(make, *lead, *grid, size=k**-0.5), block)


def _fp8_rows(make: Maker, *shape: int) -> Fp8Rows:
    return Fp8Rows(_e4m3(make, *shape), _scales(make, *shape[:-1], size=shape[-1] ** -0.5))


def _nvfp4(make: Maker, *shape: int) -> Nvfp4:
    *lead, k = shape
    codes, scales = _bytes(make, *lead, k // 2), _e4m3(make, *lead, k // 16, sign=0)
    return Nvfp4(codes, scales, _scales(make, *lead, size=k**-0.5 / 3))


def _mxfp4(make: Maker, *shape: int) -> Mxfp4:
    *lead, k = shape
    low = 127 - 3 - k.bit_length() // 2
    exponents = _bytes(make, *lead, k // 32) % 3 + low
    return Mxfp4(_bytes(make, *lead, k // 2), exponents)


def _int4(make: Maker, *shape: int, group: int = 128, zeros: bool = True) -> Int4Group:
    *lead, k = shape
    scales = _scales(make, *lead, k // group, size=k**-0.5 / 6).to(torch.bfloat16)
    points = _bytes(make, *lead, k // group) % 16 if zeros else None
    return Int4Group(_bytes(make, *lead, k // 2), scales, points, group)


def _ordered(make: Maker, *shape: int) -> Int4Group:
    plain = _int4(make, *shape, group=32, zeros=False)
    order = torch.randperm(shape[-1], device=make.device, generator=make.generator)
    return Int4Group(plain.codes, plain.scales, None, plain.group, order.int())


_QUANTIZED: dict[str, Callable[..., QuantizedTensor]] = {
    "fp8-block": _fp8_block,
    "fp8-block-64": partial(_fp8_block, block=(64, 64)),
    "fp8-rows": _fp8_rows,
    "nvfp4": _nvfp4,
    "mxfp4": _mxfp4,
    "int4": _int4,
    "int4-64": partial(_int4, group=64),
    "int4-32": partial(_int4, group=32, zeros=False),
    "int4-ordered": _ordered,
}
FORMATS = (*FLOATS, *_QUANTIZED)


def weight(make: Maker, form: str, *shape: int) -> Weight:
    """[..., n, k] of a format in FORMATS, values of size k^-0.5.

    hostile: rows of a weight that is not large lie among NaN and 0xff.
    """
    large = math.prod(shape) > LARGE
    if form in FLOATS and not large:
        return make.randn(*shape, dtype=FLOATS[form], scale=shape[-1] ** -0.5)
    if form in FLOATS:
        drawn = torch.empty(shape, dtype=FLOATS[form], device=make.device)
        return drawn.normal_(0.0, shape[-1] ** -0.5, generator=make.generator)
    made = _QUANTIZED[form](make, *shape)
    if large or not make.hostile or make.device.type == "meta":
        return made
    return made.changed(_apart)


def _apart(name: str, t: torch.Tensor) -> torch.Tensor:
    if t.ndim < 2:
        return t
    kind = torch.uint8 if t.element_size() == 1 else t.dtype
    buffer = torch.empty(*t.shape[:-1], t.shape[-1] + 2 * MARGIN, dtype=kind, device=t.device)
    buffer.fill_(float("nan") if kind.is_floating_point else 0xFF)
    view = buffer[..., MARGIN:-MARGIN]
    view.copy_(t.view(kind))
    return view.view(t.dtype)
