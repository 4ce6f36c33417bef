"""Pack rows into pages, and read whole contexts back.

FP8 groups:  scale = max(amax, floor) / 448, rounded up to a power of two where the record says
so;  code = e4m3(x / scale), nearest even.  The same bytes as the reference's: divisions are IEEE
ones and the codes are made with integers, so GPUs without FP8 conversion write them too.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from sparkwell.formats.kv import Part
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.cache.schedule import TABLE, Problem
from sparkwell.ops.device import device_of
from sparkwell.ops.kernels.e4m3 import e4m3_code, e4m3_value, group_scale
from sparkwell.ops.kernels.requests import request_of
from sparkwell.ops.launch import launch
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import Choice, pick

PLAIN_BLOCK = 256  # values of a plain part that one block moves

# ---------------------------------------------------------------- kernel


@triton.jit
def _write_kernel(
    out_ptr, scale_ptr, x_ptr, slot_ptr, num_slots, page_size, page_stride, scale_page_stride,
    stride_x, count, group, floor,
    PLANE: tl.constexpr, TOKEN: tl.constexpr, SCALE_PLANE: tl.constexpr, SCALE_TOKEN: tl.constexpr,
    FP8: tl.constexpr, POW2: tl.constexpr, PLANAR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1)
    slot = tl.load(slot_ptr + t).to(tl.int64)
    if (slot >= 0) & (slot < num_slots):
        page = slot // page_size
        offset = slot % page_size
        inside = tl.arange(0, BLOCK)
        column = g * group + inside
        mask = (inside < group) & (column < count)
        x = tl.load(x_ptr + t * stride_x + column, mask=mask, other=0.0)
        # The planes before this one take their bytes a token for a whole page.
        start = page_size * PLANE if PLANAR else PLANE
        out = out_ptr + page * page_stride + start + offset * TOKEN + column
        if FP8:
            x = x.to(tl.float32)
            scale = group_scale(x, floor, POW2)
            tl.store(out, e4m3_code(tl.math.div_rn(x, scale)), mask=mask)
            start = page_size * SCALE_PLANE if PLANAR else SCALE_PLANE
            to = scale_ptr + page * scale_page_stride + start + offset * SCALE_TOKEN + g
            tl.store(to, scale)
        else:
            tl.store(out, x.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gather_kernel(
    y_ptr, in_ptr, scale_ptr, key_start_ptr, table_ptr, num_requests, num_pages, table_width,
    page_size, page_stride, scale_page_stride, stride_table, width, first, count, group,
    PLANE: tl.constexpr, TOKEN: tl.constexpr, SCALE_PLANE: tl.constexpr, SCALE_TOKEN: tl.constexpr,
    FP8: tl.constexpr, PLANAR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    s = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1)
    request = request_of(s, key_start_ptr, num_requests, 128)
    position = s - tl.load(key_start_ptr + request)
    logical = position // page_size
    offset = position % page_size
    row = table_ptr + request.to(tl.int64) * stride_table
    page = tl.load(row + tl.minimum(logical, table_width - 1)).to(tl.int64)
    inside = tl.arange(0, BLOCK)
    column = g * group + inside
    mask = (inside < group) & (column < count)
    of_page = tl.zeros((BLOCK,), tl.int64) + page
    of_table = tl.zeros((BLOCK,), tl.int64) + logical
    known = mask & (of_page >= 0) & (of_page < num_pages) & (of_table < table_width)
    start = page_size * PLANE if PLANAR else PLANE
    at = in_ptr + page * page_stride + start + offset * TOKEN + column
    if FP8:
        start = page_size * SCALE_PLANE if PLANAR else SCALE_PLANE
        scale_at = scale_ptr + page * scale_page_stride + start + offset * SCALE_TOKEN + g
        scale = tl.load(scale_at + tl.zeros_like(column), mask=known, other=0.0)
        value = e4m3_value(tl.load(at, mask=known, other=0)) * scale
    else:
        value = tl.load(at, mask=known, other=0.0).to(tl.float32)
    tl.store(y_ptr + s * width + first + column, value, mask=mask)


# ---------------------------------------------------------------- launch


def layout(cache: PagedCache, part: Part) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """The part's pages as its own type, its scales' as fp32, and the constants of the kernels."""
    record, pages = cache.record, cache.pages
    field = record.field(part.field)
    fp8 = part.scale is not None
    token = field.nbytes if record.planar else record.nbytes
    size = 1 if fp8 else field.dtype.itemsize
    values = pages if fp8 else pages.view(field.dtype)
    constants: dict[str, Any] = {
        "PLANE": field.offset // size, "TOKEN": token // size, "SCALE_PLANE": 0, "SCALE_TOKEN": 0,
        "FP8": fp8, "PLANAR": record.planar,
    }  # fmt: skip
    if part.scale is None:
        return values, values, constants
    scale = record.field(part.scale)
    token = scale.nbytes if record.planar else record.nbytes
    constants |= {"SCALE_PLANE": scale.offset // 4, "SCALE_TOKEN": token // 4}
    return values, pages.view(torch.float32), constants


def _choose(op: str, cache: PagedCache, part: Part) -> tuple[Choice, int, int]:
    """The row, the values that share a block, and the block's size."""
    group = part.group if part.scale is not None else PLAIN_BLOCK
    block = triton.next_power_of_2(group)
    return pick(op, TABLE, Problem(block), device_of(cache.pages.device).target), group, block


def write_rows(cache: PagedCache, slots: torch.Tensor, values: torch.Tensor) -> None:
    """`cache_write` of checked operands: one launch a part of the record."""
    values, slots = unit_stride(values), unit_stride(slots)
    first = 0
    for part in cache.record.parts:
        choice, group, block = _choose("cache_write", cache, part)
        pages, scales, constants = layout(cache, part)
        count = cache.record.field(part.field).count
        launch(
            _write_kernel, (len(slots), triton.cdiv(count, group)), pages, scales,
            values[:, first:], slots, cache.num_slots, cache.page_size, pages.stride(0),
            scales.stride(0), values.stride(0), count, group, part.floor,
            choice=choice, POW2=part.pow2, BLOCK=block, **constants,
        )  # fmt: skip
        first += count


def gather_rows(
    cache: PagedCache, context_lens: torch.Tensor, block_table: torch.Tensor, num_keys: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`cache_gather` of checked operands: one launch a part of the record."""
    key_start = torch.zeros(len(context_lens) + 1, dtype=torch.int32, device=context_lens.device)
    key_start[1:] = context_lens.cumsum(0)
    block_table = unit_stride(block_table)
    total = int(key_start[-1]) if num_keys is None else num_keys
    width = cache.record.width
    out = torch.empty(total, width, dtype=torch.float32, device=cache.pages.device)
    first = 0
    for part in cache.record.parts:
        choice, group, block = _choose("cache_gather", cache, part)
        pages, scales, constants = layout(cache, part)
        count = cache.record.field(part.field).count
        launch(
            _gather_kernel, (total, triton.cdiv(count, group)), out, pages, scales, key_start,
            block_table, len(context_lens), cache.num_pages, block_table.shape[1],
            cache.page_size, pages.stride(0), scales.stride(0), block_table.stride(0), width,
            first, count, group, choice=choice, BLOCK=block, **constants,
        )  # fmt: skip
        first += count
    return out, key_start
