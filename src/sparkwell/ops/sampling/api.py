"""Public sampling ops: shapes checked, backend chosen."""

from collections.abc import Sequence
from functools import partial

import torch

from sparkwell.errors import BadInput
from sparkwell.ops.backend import choose
from sparkwell.ops.ragged import shown
from sparkwell.ops.sampling.batched import (
    COLUMNS,
    draw_reference,
    logprobs_batched,
    sample_batched,
)
from sparkwell.ops.sampling.reference import (
    History,
    SamplingRow,
    check_ids,
    greedy_reference,
    logprobs_reference,
    sample_reference,
)
from sparkwell.ops.sampling.schedule import SEARCHED


def greedy(logits: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """ids[b] = the lowest id of the largest of logits[b]; -1 where that is NaN or infinite.

    logits: [B, V] any float type.

    Returns [B] int64.  Raises BadInput for another shape.
    """
    served_by = choose("greedy", logits, backend)
    if logits.ndim != 2 or not logits.is_floating_point():
        raise BadInput(f"greedy: logits is {shown(logits)}, want float [B, V]")
    if served_by == "reference":
        return greedy_reference(logits)
    from sparkwell.ops.sampling.kernels.largest import largest_ids

    return largest_ids(logits)


def sample(
    logits: torch.Tensor,
    rows: Sequence[SamplingRow],
    histories: Sequence[History],
    uniforms: torch.Tensor,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """ids[b] = the first id with cumulative softmax(adjusted logits[b]) above uniforms[b].

    logits: [B, V] any float type; finite or -inf.
    rows: B SamplingRows; at temperature 0 the largest logit is taken, ties the lowest id.
    histories: B pairs (prompt ids, output ids), for the penalties.
    uniforms: [B] in [0, 1), from `uniform`, on the CPU if nothing is to wait for the device; rows
        at temperature 0 ignore theirs.

    Returns [B] int64.  Probabilities and their sums are fp64.
    Raises BadInput where the counts do not fit; the reference also where a row cannot be sampled
    or, as on the CPU, a uniform is none (elsewhere nothing waits: such a row gives -1).
    """
    served_by = choose("sample", logits, backend)
    counts = {len(rows), len(histories), *uniforms.shape}
    if logits.ndim != 2 or uniforms.ndim != 1 or counts != {len(logits)}:
        raise BadInput(
            f"sample: logits is {tuple(logits.shape)} with {len(rows)} rows, {len(histories)} "
            f"histories and uniforms {tuple(uniforms.shape)}, want [B, V] and B of each"
        )
    known = uniforms.device.type == "cpu" and len(uniforms) > 0
    if known and not (uniforms.min() >= 0.0 and uniforms.max() <= 1.0):
        raise BadInput(
            f"sample: uniforms range from {float(uniforms.min())} to {float(uniforms.max())}, "
            "want [0, 1)"
        )
    if served_by == "reference":
        return sample_reference(logits, rows, histories, uniforms)
    if all(row == SamplingRow(temperature=0.0) for row in rows):
        return greedy(logits, backend="kernel")
    return sample_batched(logits, rows, histories, uniforms, partial(draw, backend="kernel"))


def draw(
    x: torch.Tensor, table: torch.Tensor, *, sorts: bool, backend: str = "auto"
) -> torch.Tensor:
    """ids[b] = what `sample` draws of adjusted logits x[b], by the numbers in table[b].

    x: [B, V] fp32.
    table: [B, 5] fp64, from `drawing_table`, on x's device.
    sorts: whether a row has top-k or top-p; False leaves them out.

    Returns [B] int64, -1 where the row's largest logit is NaN or infinite.  Reads no value on the
    host.  Sums of probabilities are fp64, in an order of the kernel's own; long rows that have to
    be sorted are left to torch on every device.
    Raises BadInput where shapes or dtypes do not fit.
    """
    served_by = choose("draw", x, backend)
    fits = x.ndim == 2 and table.shape == (len(x), COLUMNS)
    if not fits or x.dtype != torch.float32 or table.dtype != torch.float64:
        raise BadInput(
            f"draw: x is {shown(x)} and table {shown(table)}, want float32 [B, V] and float64 "
            f"[B, {COLUMNS}]"
        )
    if served_by == "reference" or (sorts and x.shape[1] > SEARCHED):
        return draw_reference(x, table, sorts=sorts)
    from sparkwell.ops.sampling.kernels.draw import draw_rows

    return draw_rows(x, table, sorts=sorts)


def logprobs(
    logits: torch.Tensor, ids: torch.Tensor, *, top: int, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log softmax(logits) at ids and at the `top` largest, of the model's own (raw) logits.

    logits: [B, V] any float type.
    ids: [B] integers in [0, V).
    top: alternatives per row, 0 to V.

    Returns logprob [B] fp32, top ids [B, top] int64 (likeliest first, ties: lower id) and their
    logprobs [B, top] fp32.  Raises BadInput where the shapes do not fit; the reference also for an
    id outside the vocabulary (elsewhere one below 0 counts as 0, nothing waits for a larger one).
    """
    served_by = choose("logprobs", logits, backend)
    if logits.ndim != 2 or ids.shape != logits.shape[:1] or not 0 <= top <= logits.shape[1]:
        raise BadInput(
            f"logprobs: logits is {tuple(logits.shape)}, ids {tuple(ids.shape)} and top {top}, "
            "want [B, V], [B] and 0 <= top <= V"
        )
    if served_by == "reference":
        check_ids("ids", ids.tolist(), logits.shape[1])
        return logprobs_reference(logits, ids.to(logits.device), top)
    return logprobs_batched(logits, ids.to(logits.device).long(), top)
