"""Random weights of every format, from bytes and not from a quantizer; and their meaning, slowly.

`slow` computes each element by itself in Python floats (fp64) from the format's definition.
"""

import math
from collections.abc import Callable

import torch

from sparkwell.formats import (
    Activations,
    Fp8Block,
    Fp8Rows,
    Int4Group,
    Mxfp4,
    Nvfp4,
    QuantizedTensor,
)

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E4M3 = torch.float8_e4m3fn


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_bytes(*shape: int, seed: int, low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=generator(seed), dtype=torch.uint8)


def finite_e4m3(*shape: int, seed: int, signed: bool = True) -> torch.Tensor:
    """e4m3 of every exponent, without NaN."""
    codes = random_bytes(*shape, seed=seed, high=0x7F)
    signs = random_bytes(*shape, seed=seed + 1, high=2) * (0x80 if signed else 0)
    return (codes + signs).view(E4M3)


def factors(*shape: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    """Positive fp32 of differing sizes."""
    return torch.exp(torch.randn(shape, generator=generator(seed)) * spread)


def fp8_block(*shape: int, seed: int = 0, block: tuple[int, int] = (3, 5)) -> Fp8Block:
    *lead, n, k = shape
    scales = factors(*lead, -(-n // block[0]), -(-k // block[1]), seed=seed)
    return Fp8Block(finite_e4m3(*shape, seed=seed), scales, block)


def fp8_rows(
    *shape: int, seed: int = 0, activations: Activations = "fp8-token", static: bool = False
) -> Fp8Rows:
    scale = factors(*shape[:-2], seed=seed + 9) if static else None
    values = finite_e4m3(*shape, seed=seed)
    return Fp8Rows(values, factors(*shape[:-1], seed=seed), activations, scale)


def nvfp4(
    *shape: int, seed: int = 0, activations: Activations = "nvfp4", static: bool = False
) -> Nvfp4:
    *lead, n, k = shape
    codes = random_bytes(*lead, n, k // 2, seed=seed)
    scales = finite_e4m3(*lead, n, k // 16, seed=seed, signed=False)
    scale = factors(*lead, seed=seed + 9) if static else None
    return Nvfp4(codes, scales, factors(*lead, n, seed=seed) / 256, activations, scale)


def mxfp4(*shape: int, seed: int = 0) -> Mxfp4:
    *lead, n, k = shape
    scales = random_bytes(*lead, n, k // 32, seed=seed, low=120, high=134)
    return Mxfp4(random_bytes(*lead, n, k // 2, seed=seed), scales)


def int4(
    *shape: int,
    seed: int = 0,
    group: int = 32,
    zero_points: bool = True,
    ordered: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> Int4Group:
    *lead, n, k = shape
    scales = factors(*lead, n, k // group, seed=seed).to(dtype)
    # GPTQ's first version stores zero - 1: its zeros reach 16.
    zeros = random_bytes(*lead, n, k // group, seed=seed + 1, high=17) if zero_points else None
    order = torch.randperm(k, generator=generator(seed)).int() if ordered else None
    return Int4Group(random_bytes(*lead, n, k // 2, seed=seed), scales, zeros, group, order)


KINDS: dict[str, Callable[..., QuantizedTensor]] = {
    "fp8-block": fp8_block,
    "fp8-rows": fp8_rows,
    "nvfp4": nvfp4,
    "mxfp4": mxfp4,
    "int4": int4,
    "int4-symmetric": lambda *shape, seed=0: int4(
        *shape, seed=seed, zero_points=False, dtype=torch.float16
    ),
    "int4-ordered": lambda *shape, seed=0: int4(
        *shape, seed=seed, group=16, ordered=True, dtype=torch.float32
    ),
}


def slow(weight: QuantizedTensor) -> torch.Tensor:
    """fp64 [n, k] of one weight, element by element."""
    n, k = weight.shape
    out = torch.empty(n, k, dtype=torch.float64)
    for i in range(n):
        for j in range(k):
            column, value = _element(weight, i, j)
            out[i, column] = value
    return out


def _element(weight: QuantizedTensor, i: int, j: int) -> tuple[int, float]:
    if isinstance(weight, Fp8Block):
        bn, bk = weight.block
        return j, weight.values[i, j].float().item() * weight.scales[i // bn, j // bk].item()
    if isinstance(weight, Fp8Rows):
        return j, weight.values[i, j].float().item() * weight.scales[i].item()
    code = (int(weight.codes[i, j // 2]) >> 4 * (j % 2)) % 16
    if isinstance(weight, Int4Group):
        group = j // weight.group
        zero = 8 if weight.zeros is None else int(weight.zeros[i, group])
        column = j if weight.order is None else int(weight.order[j])
        return column, (code - zero) * weight.scales[i, group].float().item()
    value = math.copysign(E2M1[code % 8], -1.0 if code >= 8 else 1.0)
    if isinstance(weight, Mxfp4):
        return j, value * 2.0 ** (int(weight.scales[i, j // 32]) - 127)
    return j, value * weight.scales[i, j // 16].float().item() * weight.row_scales[i].item()
