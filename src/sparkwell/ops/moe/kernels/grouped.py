"""Grouped product: each tile of rows by the weight of its own expert.

y[to(p)] = W[e] x[from(p)] (+ what is added)  or  y[to(p)] = silu(gate) * up,  W[e] x = (gate, up)

A block makes BLOCK_N outputs of one tile: up to BLOCK_M positions p of one expert.  The weight is
the left operand, so that few rows cost few columns of the product.  Rows are read where they lie.
Every output's sum runs over the columns in order: the same in any batch, for the same tile height.
"""

import triton
import triton.language as tl

from sparkwell.ops.moe.kernels.fp4 import fp4_sums
from sparkwell.ops.moe.kernels.places import tile_rows
from sparkwell.ops.moe.kernels.turned import turned_place, turned_tile
from sparkwell.ops.moe.kernels.weights import (
    e4m3_tile,
    group_factor,
    inside,
    row_factor,
    weight_tile,
)


@triton.jit
def _split(x, lower):
    """A float16 tile as bfloat16: its upper part, or what that leaves."""
    upper = x.to(tl.bfloat16)
    if lower:
        return (x.to(tl.float32) - upper.to(tl.float32)).to(tl.bfloat16)
    return upper


@triton.jit
def _add_product(total, weight, x, factor, SCALED: tl.constexpr):
    """total + weight x, SCALED: total + factor * (weight x)."""
    precision: tl.constexpr = "ieee" if weight.dtype == tl.float32 else "tf32"
    SPLIT: tl.constexpr = x.dtype == tl.float16 and weight.dtype == tl.bfloat16
    if SCALED:
        total += tl.dot(weight, x, input_precision=precision) * factor
    elif SPLIT:
        total = tl.dot(weight, _split(x, True), total)
        total = tl.dot(weight, _split(x, False), total)
    else:
        total = tl.dot(weight, x, total, input_precision=precision)
    return total


@triton.jit
def _sums(
    x_ptr, x_scale_ptr, w_ptr, scale_ptr, zero_ptr, rows, source, n, k,
    stride_x, stride_xs, stride_xk, stride_w, stride_s, stride_z,
    KIND: tl.constexpr, GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, CONVERT: tl.constexpr,
    ASM: tl.constexpr, LEFT: tl.constexpr, TYPE: tl.constexpr, GATED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr, STAGES: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """Of the weight's `rows`, and of those n further where gated.  -> two of [BLOCK_N, BLOCK_M]"""
    SCALED: tl.constexpr = KIND == "fp8-block" or KIND == "int4"

    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    lifted = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    inner = tl.arange(0, BLOCK_K)
    for begin in tl.range(0, k, BLOCK_K, num_stages=STAGES):
        at = begin + inner
        x = tl.load(
            x_ptr + source[None, :] * stride_x + at[:, None],
            mask=inside(at[:, None], k, EVEN),
            other=0,
        )  # [BLOCK_K, BLOCK_M]
        if x_scale_ptr is not None:
            x = e4m3_tile(x, CONVERT, ASM, TYPE)
        if tl.float32 == TYPE:
            x = x.to(tl.float32)
        factor = 1.0
        x_factor = 1.0
        if SCALED:
            factor = group_factor(scale_ptr, rows, begin, stride_s, KIND, LEFT, BLOCK_ROWS, GROUP)[
                :, None
            ]
        if x_scale_ptr is not None:
            x_factor = tl.load(x_scale_ptr + source * stride_xs + begin // GROUP * stride_xk)
            x_factor = x_factor[None, :]
        if TURNED:
            weight = turned_tile(
                w_ptr, scale_ptr, rows, begin, stride_w, stride_s,
                KIND, GROUP, ASM, TYPE, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        else:
            weight = weight_tile(
                w_ptr, scale_ptr, zero_ptr, rows, begin, k, stride_w, stride_s, stride_z,
                KIND, GROUP, CONVERT, ASM, TYPE, BLOCK_N, BLOCK_K, EVEN,
            )  # fmt: skip
        total = _add_product(total, weight, x, factor * x_factor, SCALED)
        if GATED:
            if SCALED:
                factor = group_factor(
                    scale_ptr, rows + n, begin, stride_s, KIND, LEFT, BLOCK_ROWS, GROUP
                )[:, None]
            if TURNED:
                weight = turned_tile(
                    w_ptr, scale_ptr, rows + n, begin, stride_w, stride_s,
                    KIND, GROUP, ASM, TYPE, BLOCK_N, BLOCK_K,
                )  # fmt: skip
            else:
                weight = weight_tile(
                    w_ptr, scale_ptr, zero_ptr, rows + n, begin, k, stride_w, stride_s, stride_z,
                    KIND, GROUP, CONVERT, ASM, TYPE, BLOCK_N, BLOCK_K, EVEN,
                )  # fmt: skip
            lifted = _add_product(lifted, weight, x, factor * x_factor, SCALED)
    return total, lifted


@triton.jit
def _one_tile(
    y_ptr, x_ptr, x_scale_ptr, w_ptr, scale_ptr, zero_ptr, row_scale_ptr, add_ptr,
    x_factor_ptr, pair_ptr, expert, outer, source, first, count, stored, n, k,
    stride_y, stride_x, stride_xs, stride_xk, stride_add,
    stride_we, stride_w, stride_se, stride_s, stride_ze, stride_z, stride_re,
    KIND: tl.constexpr, GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, CONVERT: tl.constexpr,
    ASM: tl.constexpr, LEFT: tl.constexpr, TYPE: tl.constexpr, GATED: tl.constexpr,
    SCATTER: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr, STAGES: tl.constexpr, X_FACTORS: tl.constexpr,
    TURNED: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """Outputs `outer` of the rows `source` of x, to as many places from `first` on.

    count: rows that hold something; those from there to `stored` become 0.
    """
    rows = tl.minimum(outer, n - 1).to(tl.int64)  # past the last: the last again
    w_ptr += expert * stride_we
    if scale_ptr is not None:
        scale_ptr += expert * stride_se
    if zero_ptr is not None:
        zero_ptr += expert * stride_ze
    if row_scale_ptr is not None:
        row_scale_ptr += expert * stride_re
    if X_FACTORS:
        total, lifted = fp4_sums(
            w_ptr, scale_ptr, x_ptr, x_scale_ptr, rows, rows + n, source, k, stride_w, stride_s,
            stride_x, stride_xs, GATED, BLOCK_N, BLOCK_M, BLOCK_K, STAGES,
        )  # fmt: skip
        factor = tl.load(x_factor_ptr + source)[None, :]
        total *= factor
        lifted *= factor
    else:
        total, lifted = _sums(
            x_ptr, x_scale_ptr, w_ptr, scale_ptr, zero_ptr, rows, source, n, k,
            stride_x, stride_xs, stride_xk, stride_w, stride_s, stride_z,
            KIND, GROUP, BLOCK_ROWS, CONVERT, ASM, LEFT, TYPE, GATED,
            BLOCK_N, BLOCK_M, BLOCK_K, EVEN, STAGES, TURNED,
        )  # fmt: skip
    ROWWISE: tl.constexpr = KIND == "nvfp4" or KIND == "fp8-rows"
    if ROWWISE:
        total *= row_factor(scale_ptr, row_scale_ptr, rows, KIND, LEFT)[:, None]
    if GATED:
        if ROWWISE:
            lifted *= row_factor(scale_ptr, row_scale_ptr, rows + n, KIND, LEFT)[:, None]
        total = total / (1.0 + tl.exp(-total)) * lifted
    row = tl.arange(0, BLOCK_M)
    mask = (outer < n)[:, None] & (row < stored)[None, :]
    total = tl.where((row < count)[None, :], total, 0.0)
    goal = first + row
    if SCATTER and pair_ptr is not None:
        goal = tl.load(pair_ptr + goal, mask=row < stored, other=0).to(tl.int64)
    if add_ptr is not None:
        added = add_ptr + goal[None, :] * stride_add + outer[:, None]
        total += tl.load(added, mask=mask, other=0.0).to(tl.float32)
    column = turned_place(outer, TURNS) if TURNS > 0 else outer
    tl.store(
        y_ptr + goal[None, :] * stride_y + column[:, None],
        total.to(y_ptr.dtype.element_ty),
        mask=mask,
    )


@triton.jit
def grouped_kernel(
    y_ptr, x_ptr, x_scale_ptr, w_ptr, scale_ptr, zero_ptr, row_scale_ptr, pair_ptr, tile_ptr,
    id_ptr, add_ptr, x_factor_ptr, first_expert, num_experts, n, k, tiles, per_row, height, slots,
    stride_y, stride_x, stride_xs, stride_xk, stride_add,
    stride_we, stride_w, stride_se, stride_s, stride_ze, stride_z, stride_re,
    KIND: tl.constexpr, GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, CONVERT: tl.constexpr,
    ASM: tl.constexpr, LEFT: tl.constexpr, TYPE: tl.constexpr,
    LAYOUT: tl.constexpr, ALIGN: tl.constexpr,
    GATED: tl.constexpr, GATHER: tl.constexpr, SCATTER: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
    STAGES: tl.constexpr, X_FACTORS: tl.constexpr,
    TURNED: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(n, BLOCK_N)
    outer = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    tile = tl.program_id(0) // blocks
    row = tl.arange(0, BLOCK_M)
    if LAYOUT == "counted":  # each slot of a group takes every `slots`-th of its tiles
        group = (tile // slots).to(tl.int64)
        end = tl.minimum(tl.load(id_ptr + group), height)
        for begin in range(tile % slots * BLOCK_M, end, slots * BLOCK_M):
            count = tl.minimum(end - begin, BLOCK_M)
            first = group * height + begin
            source = first + tl.where(row < count, row, 0)
            _one_tile(
                y_ptr, x_ptr, x_scale_ptr, w_ptr, scale_ptr, zero_ptr, row_scale_ptr, add_ptr,
                x_factor_ptr, pair_ptr, group, outer, source, first, count, count, n, k,
                stride_y, stride_x, stride_xs, stride_xk, stride_add,
                stride_we, stride_w, stride_se, stride_s, stride_ze, stride_z, stride_re,
                KIND, GROUP, BLOCK_ROWS, CONVERT, ASM, LEFT, TYPE, GATED, SCATTER,
                BLOCK_N, BLOCK_M, BLOCK_K, EVEN, STAGES, X_FACTORS, TURNED, TURNS,
            )  # fmt: skip
    else:
        expert, first, count = tile_rows(
            tile, tile_ptr, id_ptr, tiles, first_expert, num_experts, height, LAYOUT, ALIGN, BLOCK_M
        )
        stored = count
        if LAYOUT == "rows" or LAYOUT == "ends":  # rows of no group become 0
            stored = tl.minimum(height - tile * BLOCK_M, BLOCK_M)
        if LAYOUT == "rows":
            blank = tl.where(expert < 0, stored, 0)
            tl.store(
                y_ptr + (first + row)[None, :] * stride_y + outer[:, None],
                tl.zeros((BLOCK_N, BLOCK_M), y_ptr.dtype.element_ty),
                mask=(outer < n)[:, None] & (row < blank)[None, :],
            )
        if expert < 0:
            return
        source = first + tl.where(row < count, row, 0)  # past the last: the first again
        if GATHER:
            if pair_ptr is not None:
                source = tl.load(pair_ptr + source).to(tl.int64)
            source = source // per_row
        _one_tile(
            y_ptr, x_ptr, x_scale_ptr, w_ptr, scale_ptr, zero_ptr, row_scale_ptr, add_ptr,
            x_factor_ptr, pair_ptr, expert, outer, source, first, count, stored, n, k,
            stride_y, stride_x, stride_xs, stride_xk, stride_add,
            stride_we, stride_w, stride_se, stride_s, stride_ze, stride_z, stride_re,
            KIND, GROUP, BLOCK_ROWS, CONVERT, ASM, LEFT, TYPE, GATED, SCATTER,
            BLOCK_N, BLOCK_M, BLOCK_K, EVEN, STAGES, X_FACTORS, TURNED, TURNS,
        )  # fmt: skip
