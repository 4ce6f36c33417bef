"""Parts of attention over parts of the keys, merged:  out = sum_i out_i 2^(lse_i - lse).

Parts are summed in their order, so a merge repeats bit for bit.
"""

import torch
import triton
import triton.language as tl

from sparkwell.ops.attention.kernels.parts import LN2, sink_share
from sparkwell.ops.attention.schedule import MERGE
from sparkwell.ops.device import device_of
from sparkwell.ops.launch import launch
from sparkwell.ops.schedule import pick


@triton.jit
def merge_kernel(
    out_ptr, lse_ptr, part_ptr, part_lse_ptr, sink_ptr, num_rows, num_parts, stride_ot, stride_oh,
    d, HEADS: tl.constexpr, PARTS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # part_ptr: fp32 [num_parts, rows, d]; part_lse_ptr: base 2, [num_parts, rows], +inf for no key
    row = tl.program_id(0).to(tl.int64)  # of num_rows = tokens * HEADS
    head = (row % HEADS).to(tl.int32)
    parts = tl.arange(0, PARTS).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    exists = parts < num_parts
    in_cols = cols < d

    part_lse = tl.load(part_lse_ptr + parts * num_rows + row, mask=exists, other=float("inf"))
    empty = part_lse == float("inf")
    part_lse = tl.where(empty, float("-inf"), part_lse)  # [PARTS]
    top = tl.max(part_lse, 0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.exp2(part_lse - shift)
    total = tl.sum(weights, 0)
    lse = tl.where(total == 0.0, float("inf"), shift + tl.log2(total))
    share = tl.where(total == 0.0, 0.0, 1.0 / total)
    if sink_ptr is not None:
        share *= sink_share(lse, tl.load(sink_ptr + head).to(tl.float32))

    from_ptr = part_ptr + (parts * num_rows + row)[:, None] * d + cols[None, :]
    mask = (exists & (empty == 0))[:, None] & in_cols[None, :]
    part = tl.load(from_ptr, mask=mask, other=0.0)  # [PARTS, BLOCK_D]
    out = tl.sum(part * weights[:, None], 0) * share
    to = out_ptr + row // HEADS * stride_ot + head.to(tl.int64) * stride_oh + cols
    tl.store(to, out.to(out_ptr.dtype.element_ty), mask=in_cols)
    tl.store(lse_ptr + row, lse * LN2, mask=tl.program_id(1) == 0)


def merge(
    out: torch.Tensor,
    lse: torch.Tensor,
    part: torch.Tensor,
    part_lse: torch.Tensor,
    sink: torch.Tensor | None,
) -> None:
    """Writes out [T, H, d] and lse [T, H] (natural) from part [N, T, H, d] and part_lse, fp32."""
    parts, tokens, heads, d = part.shape
    choice = pick("attention_merge", MERGE, parts, device_of(out.device).target)
    block_d = choice.schedule.block_d
    launch(
        merge_kernel, (tokens * heads, -(-d // block_d)), out, lse, part, part_lse, sink,
        tokens * heads, parts, out.stride(0), out.stride(1), d,
        choice=choice, HEADS=heads, PARTS=triton.next_power_of_2(parts), BLOCK_D=block_d,
    )  # fmt: skip
