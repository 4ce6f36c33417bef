"""The lowest id of each row's largest logit; a block walks over a row.

Every lane keeps the first largest of its own columns, and the lowest id among the lanes' wins.
"""

import torch
import triton
import triton.language as tl

from sparkwell.ops.device import device_of
from sparkwell.ops.launch import launch
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.sampling.schedule import TABLE, Problem
from sparkwell.ops.schedule import pick

# ---------------------------------------------------------------- kernel


@triton.jit
def _largest_kernel(id_ptr, x_ptr, vocab, stride_x, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)

    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    at = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, vocab, BLOCK):
        column = first + cols
        x = tl.load(x_ptr + row * stride_x + column, mask=column < vocab, other=float("-inf"))
        x = x.to(tl.float32)
        x = tl.where(x != x, float("inf"), x)  # NaN: as bad as infinity, and it would not compare
        at = tl.where(x > best, column, at)
        best = tl.maximum(best, x)
    largest = tl.max(best, 0)
    found = tl.min(tl.where(best == largest, at, vocab), 0)
    finite = (largest < float("inf")) & (largest > float("-inf"))
    tl.store(id_ptr + row, tl.where(finite, found, -1).to(tl.int64))


# ---------------------------------------------------------------- launch


def largest_ids(logits: torch.Tensor) -> torch.Tensor:
    """`greedy` of a checked operand.  [B, V] -> [B] int64"""
    logits = unit_stride(logits)
    rows, vocab = logits.shape
    ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    choice = pick("greedy", TABLE, Problem(vocab), device_of(logits.device).target)
    launch(
        _largest_kernel, (rows,), ids, logits, vocab, logits.stride(0),
        choice=choice, BLOCK=choice.schedule.block,
    )  # fmt: skip
    return ids
