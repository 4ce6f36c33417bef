"""Marlin's layouts of 4-bit weights, and its calls with our inputs (those of vLLM 0.33's kernels).

Codes lie eight to an int32 along K before its own function shuffles them; scales lie [K / group, N]
in tiles of 8 x 8 turned over.  NVFP4's scales are 8 bits of fp16, exponent and three of mantissa,
after a factor that makes them large; the weight's own factor takes that back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparkwell.formats.int4 import Int4Group
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.verify.case import Inputs

Call = Callable[[], torch.Tensor]
E2M1, UINT4 = 562949953487106, 1125899907892224  # vLLM's numbers of these types
E4M3_LARGEST, LIFT = 448.0, 7  # scales stand times 2^7, too
WIDENED = 126  # e2m1 becomes bfloat16 by a shift, which leaves its exponent so much too low
WORKSPACE = 1024  # locks: four for each of 256 SMs
HEIGHTS = (8, 16, 32, 48, 64)  # rows of a tile of experts
FILLED = 0.9  # of a tile, on average, before the next height is taken


@dataclass(frozen=True)
class Packed:
    """A weight, or a stack of them, as Marlin reads it."""

    codes: torch.Tensor
    scales: torch.Tensor
    factor: torch.Tensor | None
    kind: int
    n: int
    k: int


def pack(ops: Any, weight: Nvfp4 | Int4Group) -> Packed:
    """[..., n, k] in Marlin's layouts.

    NVFP4: the rows of a weight have one scale together.  INT4: no zero points, no order.
    """
    *lead, n, k = weight.shape
    words = weight.codes.view(torch.int32).reshape(-1, n, k // 8)
    codes = [ops.gptq_marlin_repack(one.t().contiguous(), k, n, 4, False) for one in words]
    scales = weight.scales.reshape(-1, *weight.scales.shape[-2:])
    if isinstance(weight, Int4Group):
        turned = torch.stack([_turned(one) for one in scales])
        return Packed(_led(codes, lead), turned.reshape(*lead, -1, n), None, UINT4, n, k)
    lift = 2.0 ** (LIFT + (E4M3_LARGEST / scales.float().max()).log2().floor().item())
    bytes_of = [_eight_bits(_turned(one.half()) * lift) for one in scales]
    factor = weight.row_scales[..., 0].reshape(-1) * (2.0**WIDENED / lift)
    return Packed(_led(codes, lead), _led(bytes_of, lead), factor, E2M1, n, k)


def _led(parts: Sequence[torch.Tensor], lead: Sequence[int]) -> torch.Tensor:
    return torch.stack(list(parts)).reshape(*lead, *parts[0].shape)


def _turned(scales: torch.Tensor) -> torch.Tensor:
    """[n, groups] -> [groups, n], each 64 columns as an 8 x 8 tile turned over."""
    across = scales.t().contiguous()
    return across.view(-1, 8, 8).transpose(1, 2).reshape(across.shape)


def _eight_bits(scales: torch.Tensor) -> torch.Tensor:
    """fp16 -> five bits of exponent and three of mantissa; the middle two of four change places."""
    pairs = scales.reshape(-1, 2, 2).transpose(1, 2).reshape(scales.shape)
    bits = torch.where(pairs < 2, 0, pairs).view(torch.int16) >> 7
    return bits.to(torch.uint8).view(torch.float8_e4m3fn)


def linear_calls(ops: Any, inputs: Sequence[Inputs]) -> list[Call]:
    """Linear layers: bfloat16 x by a packed weight."""

    def one(x: Inputs) -> Call:
        rows, w = x["x"], pack(ops, x["weight"])
        room = torch.zeros(WORKSPACE, dtype=torch.int32, device=rows.device)
        operands = (rows, None, w.codes, None, w.scales, None, w.factor, None, room)
        sizes = (w.kind, len(rows), w.n, w.k, False, True, False)
        return lambda: ops.marlin_gemm(*operands, *sizes)

    return [one(x) for x in inputs]


def experts_calls(modules: tuple[Any, Any], inputs: Sequence[Inputs]) -> list[Call]:
    """Experts: sort, the grouped product, SwiGLU, the second product, and the sum.

    modules: vLLM's usual ops, and those of its experts.
    """
    ops, moe = modules
    held: dict[int, Packed] = {}

    def packed(weight: Nvfp4) -> Packed:
        if id(weight) not in held:
            held[id(weight)] = pack(ops, weight)
        return held[id(weight)]

    return [_experts(ops, moe, x, packed(x["gate_up"]), packed(x["down"])) for x in inputs]


def _experts(ops: Any, moe: Any, x: Inputs, up: Packed, down: Packed) -> Call:
    rows, weights, ids = x["x"], x["weights"].contiguous(), x["ids"].int()
    (tokens, topk), experts = ids.shape, len(up.codes)
    pairs = tokens * topk
    tall = next((h for h in HEIGHTS if pairs / experts / h < FILLED), HEIGHTS[-1])
    most = min(pairs * tall, pairs + experts * (tall - 1))
    order = ids.new_full((most,), pairs)
    owners, used = ids.new_zeros(-(-most // tall)), ids.new_zeros(1)
    room = ids.new_zeros(WORKSPACE)
    both, hidden = rows.new_empty(pairs, up.n), rows.new_empty(pairs, down.k)
    parts, out = rows.new_empty(pairs, down.n), torch.empty_like(rows)

    def product(a: torch.Tensor, c: torch.Tensor, w: Packed, each: int, weigh: bool) -> None:
        operands = (a, c, w.codes, None, w.scales, None, w.factor, None, room)
        places = (order, owners, used, weights, tall, each, weigh)
        sizes = (w.kind, len(a), w.n, w.k, False, True, False, -1, -1, -1)
        moe.moe_wna16_marlin_gemm(*operands, *places, *sizes)

    def call() -> torch.Tensor:
        moe.moe_align_block_size(ids, experts, tall, order, owners, used, None)
        product(rows, both, up, topk, False)
        ops.silu_and_mul(hidden, both)
        product(hidden, parts, down, 1, True)
        moe.moe_sum(parts.view(tokens, topk, -1), out)
        return out

    return call
