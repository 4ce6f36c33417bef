"""Rows normed, rotated, packed and written to their pages, one block a row.

MLA:      [RMSNorm(c), RoPE(k)]   of a row [c, k]
Indexer:  RoPE(LayerNorm(k)), the first dimensions rotated

Values round where the separate ops round: to the row's type after the norm and after the
rotation, then to the record's.  Sums run over a row as in those ops, so the bytes are the same.
"""

import torch
import triton
import triton.language as tl

from sparkwell.formats.paged import PagedCache
from sparkwell.ops.cache.kernel import layout
from sparkwell.ops.cache.schedule import ROWS, Problem
from sparkwell.ops.device import device_of
from sparkwell.ops.kernels.e4m3 import e4m3_code, group_scale
from sparkwell.ops.kernels.rotation import turn
from sparkwell.ops.launch import launch
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import Choice, pick

# ---------------------------------------------------------------- kernels


@triton.jit
def _field(ptr, slot, page_size, page_stride, PLANE, TOKEN, PLANAR):
    """Where the slot's values of one field begin."""
    start = page_size * PLANE if PLANAR else PLANE
    return ptr + slot // page_size * page_stride + start + slot % page_size * TOKEN


@triton.jit
def _angle(position_ptr, t, inv_freq_ptr, i, mask, factor):
    """cos and sin of row t's angles, by the factor."""
    position = tl.load(position_ptr + t).to(tl.float32)
    angle = position * tl.load(inv_freq_ptr + i, mask=mask, other=0.0)
    return tl.cos(angle) * factor, tl.sin(angle) * factor


@triton.jit
def latent_kernel(
    latent_ptr, scale_ptr, rope_ptr, x_ptr, weight_ptr, slot_ptr, position_ptr, inv_freq_ptr,
    num_slots, page_size, page_stride, scale_page_stride, rope_page_stride, stride_x,
    stride_weight, rank, half, eps, factor, floor,
    PLANE: tl.constexpr, TOKEN: tl.constexpr, SCALE_PLANE: tl.constexpr, SCALE_TOKEN: tl.constexpr,
    FP8: tl.constexpr, PLANAR: tl.constexpr, ROPE_PLANE: tl.constexpr, ROPE_TOKEN: tl.constexpr,
    POW2: tl.constexpr, INTERLEAVED: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ptr + t).to(tl.int64)
    if (slot >= 0) & (slot < num_slots):
        row = x_ptr + t * stride_x
        column = tl.arange(0, BLOCK)
        mask = column < rank
        x = tl.load(row + column, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + column * stride_weight, mask=mask, other=0.0).to(tl.float32)
        y = x / tl.sqrt(tl.sum(x * x) / rank + eps) * weight
        y = y.to(x_ptr.dtype.element_ty).to(tl.float32)  # as rms_norm returns it
        out = _field(latent_ptr, slot, page_size, page_stride, PLANE, TOKEN, PLANAR)
        if FP8:
            grouped = tl.reshape(y, (BLOCK // GROUP, GROUP))
            scale = group_scale(grouped, floor, POW2, 1)
            g = tl.arange(0, BLOCK // GROUP)
            to = _field(
                scale_ptr, slot, page_size, scale_page_stride, SCALE_PLANE, SCALE_TOKEN, PLANAR
            )
            tl.store(to + g, scale, mask=g * GROUP < rank)
            column = g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
            codes = e4m3_code(tl.math.div_rn(grouped, scale[:, None] + tl.zeros_like(grouped)))
            tl.store(out + column, codes, mask=column < rank)
        else:
            tl.store(out + column, y.to(latent_ptr.dtype.element_ty), mask=mask)
        if BLOCK_R > 0:
            i = tl.arange(0, BLOCK_R)
            first = 2 * i if INTERLEAVED else i
            apart = 1 if INTERLEAVED else half
            cos, sin = _angle(position_ptr, t, inv_freq_ptr, i, i < half, factor)
            a = tl.load(row + rank + first, mask=i < half, other=0.0).to(tl.float32)
            b = tl.load(row + rank + first + apart, mask=i < half, other=0.0).to(tl.float32)
            x, y = turn(a, b, cos, sin)
            to = _field(rope_ptr, slot, page_size, rope_page_stride, ROPE_PLANE, ROPE_TOKEN, PLANAR)
            kind = x_ptr.dtype.element_ty  # as rope returns it
            tl.store(to + first, x.to(kind).to(rope_ptr.dtype.element_ty), mask=i < half)
            tl.store(to + first + apart, y.to(kind).to(rope_ptr.dtype.element_ty), mask=i < half)


@triton.jit
def index_key_kernel(
    key_ptr, scale_ptr, x_ptr, weight_ptr, bias_ptr, slot_ptr, position_ptr, inv_freq_ptr,
    num_slots, page_size, page_stride, scale_page_stride, stride_x, stride_weight, stride_bias, d,
    half, eps, factor, floor,
    PLANE: tl.constexpr, TOKEN: tl.constexpr, SCALE_PLANE: tl.constexpr, SCALE_TOKEN: tl.constexpr,
    FP8: tl.constexpr, PLANAR: tl.constexpr, POW2: tl.constexpr, INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ptr + t).to(tl.int64)
    if (slot >= 0) & (slot < num_slots):
        row = x_ptr + t * stride_x
        kind = x_ptr.dtype.element_ty
        n = tl.arange(0, BLOCK)
        mask = n < d
        turned = n < 2 * half
        if INTERLEAVED:
            apart, i, second = n ^ 1, n // 2, n % 2 > 0
        else:
            apart, i, second = tl.where(n < half, n + half, n - half), n % half, n >= half
        x = tl.load(row + n, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + n * stride_weight, mask=mask, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + n * stride_bias, mask=mask, other=0.0).to(tl.float32)
        mean = tl.sum(x) / d
        x = tl.where(mask, x - mean, 0.0)
        deviation = tl.sqrt(tl.sum(x * x) / d + eps)
        y = (x / deviation * weight + bias).to(kind)
        # Each value turns with the other of its pair, which is made a second time.
        other = tl.load(row + apart, mask=turned, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + apart * stride_weight, mask=turned, other=0.0)
        bias = tl.load(bias_ptr + apart * stride_bias, mask=turned, other=0.0).to(tl.float32)
        other = ((other - mean) / deviation * weight.to(tl.float32) + bias).to(kind)
        cos, sin = _angle(position_ptr, t, inv_freq_ptr, i, turned, factor)
        a, b = tl.where(second, other, y).to(tl.float32), tl.where(second, y, other).to(tl.float32)
        a, b = turn(a, b, cos, sin)
        y = tl.where(turned, tl.where(second, b, a).to(kind), y)
        out = _field(key_ptr, slot, page_size, page_stride, PLANE, TOKEN, PLANAR)
        if FP8:
            y = y.to(tl.float32)  # 0 past the row's end
            scale = group_scale(y, floor, POW2)
            tl.store(out + n, e4m3_code(tl.math.div_rn(y, scale)), mask=mask)
            to = _field(
                scale_ptr, slot, page_size, scale_page_stride, SCALE_PLANE, SCALE_TOKEN, PLANAR
            )
            tl.store(to, scale)
        else:
            tl.store(out + n, y.to(key_ptr.dtype.element_ty), mask=mask)


# ---------------------------------------------------------------- launches


def _choose(op: str, x: torch.Tensor, size: int) -> tuple[Choice, int]:
    block = triton.next_power_of_2(size)
    return pick(op, ROWS, Problem(block), device_of(x.device).target), block


def write_latents(
    cache: PagedCache,
    slots: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    eps: float,
    factor: float,
    interleaved: bool,
) -> None:
    """`latent_write` of checked operands."""
    x, slots, positions = map(unit_stride, (x, slots, positions))
    rank, half, part = len(weight), len(inv_freq), cache.record.parts[0]
    choice, block = _choose("latent_write", x, rank)
    pages, scales, constants = layout(cache, part)
    rope, _, at = layout(cache, cache.record.parts[-1])  # of the latent where nothing turns
    launch(
        latent_kernel, (len(x),), pages, scales, rope, x, weight, slots, positions,
        unit_stride(inv_freq.float()), cache.num_slots, cache.page_size, pages.stride(0),
        scales.stride(0), rope.stride(0), x.stride(0), weight.stride(0), rank, half, eps, factor,
        part.floor, choice=choice, POW2=part.pow2, ROPE_PLANE=at["PLANE"], ROPE_TOKEN=at["TOKEN"],
        INTERLEAVED=interleaved, GROUP=part.group, BLOCK=max(block, part.group),
        BLOCK_R=triton.next_power_of_2(half) if half else 0, **constants,
    )  # fmt: skip


def write_index_keys(
    cache: PagedCache,
    slots: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    eps: float,
    factor: float,
    interleaved: bool,
) -> None:
    """`index_key_write` of checked operands."""
    x, slots, positions = map(unit_stride, (x, slots, positions))
    part = cache.record.parts[0]
    choice, block = _choose("index_key_write", x, x.shape[1])
    pages, scales, constants = layout(cache, part)
    launch(
        index_key_kernel, (len(x),), pages, scales, x, weight, bias, slots, positions,
        unit_stride(inv_freq.float()), cache.num_slots, cache.page_size, pages.stride(0),
        scales.stride(0), x.stride(0), weight.stride(0), bias.stride(0), x.shape[1],
        len(inv_freq), eps, factor, part.floor, choice=choice, POW2=part.pow2,
        INTERLEAVED=interleaved, BLOCK=block, **constants,
    )  # fmt: skip
