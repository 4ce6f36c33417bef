"""Sampling, row by row in torch: logits -> adjusted logits -> a token by inverse CDF of a uniform.

p = softmax(adjusted);  token = the first id, in id order, with p[0] + ... + p[id] > u
The adjustments run in this order: logit_bias (OpenAI API), suppressed ids, repetition penalty
(CTRL, arXiv 1909.05858), presence and frequency penalties (OpenAI API), temperature, then the masks
top-k, top-p (arXiv 1904.09751) and min-p (arXiv 2407.01082), each on what the one before it left:
the order of Hugging Face Transformers' generation.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from sparkwell.errors import BadInput

History: TypeAlias = tuple[Sequence[int], Sequence[int]]  # prompt ids, output ids

NOTHING = -1  # in place of an id: the row's largest logit is NaN or infinite
MASK64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's increment: 2^64 / golden ratio


@dataclass(frozen=True)
class SamplingRow:
    """How one row is sampled; the ranges are the caller's promise (engine's SamplingParams).

    temperature: divides the logits; 0 takes the largest.
    top_k: keep the k largest (0: all).
    top_p: keep the smallest set of most likely tokens whose probability reaches top_p (1: all).
    min_p: keep tokens at least min_p times as likely as the likeliest (0: all).
    repetition_penalty: divides positive and multiplies negative logits of ids in prompt or output.
    presence_penalty: subtracted once from the logits of ids in the output.
    frequency_penalty: subtracted for every occurrence of an id in the output.
    logit_bias: id -> added to its logit.
    suppressed: ids that must not be drawn; those outside the vocabulary cannot be anyway.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    suppressed: frozenset[int] = frozenset()

    @property
    def adjusts(self) -> bool:
        """Whether logits change before the temperature: by bias, suppressed ids or a penalty."""
        penalties = (self.repetition_penalty != 1.0, self.presence_penalty, self.frequency_penalty)
        return bool(self.logit_bias or self.suppressed or any(penalties))


def uniform(seed: int, step: int) -> float:
    """The step-th number of the stream `seed`: a multiple of 2^-53 in [0, 1).

    Counter-based: two rounds of the splitmix64 mix (Steele, Lea, Flood, OOPSLA 2014), over the seed
    and then over seed and step, so a draw depends on nothing else in its batch.
    """
    state = _mix64(seed + GOLDEN)
    return (_mix64(state + (step + 1) * GOLDEN) >> 11) * 2.0**-53


def _mix64(z: int) -> int:
    z &= MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def adjusted_logits_reference(
    logits: torch.Tensor, row: SamplingRow, prompt_ids: Sequence[int], output_ids: Sequence[int]
) -> torch.Tensor:
    """What `row` makes of one row of logits, in the module's order.  [V] -> [V] fp32

    Masked and suppressed ids are -inf.  With a temperature the result is shifted so that its
    largest is 0, which no softmax sees and no small temperature overflows.  At temperature 0 the
    temperature and the masks are left out: they never remove the lowest id of the largest logits.

    Raises BadInput for NaN or +inf, for rows with no finite logit, for ids outside the vocabulary.
    """
    x = logits.to(torch.float32, copy=True)
    if row.logit_bias:
        ids = _index("logit_bias", row.logit_bias, x)
        x[ids] += torch.tensor(list(row.logit_bias.values()), dtype=x.dtype, device=x.device)
    if row.suppressed:
        x[[i for i in row.suppressed if 0 <= i < len(x)]] = -torch.inf
    if row.repetition_penalty != 1.0:
        ids = _index("history", {*prompt_ids, *output_ids}, x)
        seen = x[ids]
        x[ids] = torch.where(seen > 0, seen / row.repetition_penalty, seen * row.repetition_penalty)
    if row.presence_penalty or row.frequency_penalty:
        counts = torch.bincount(_index("output", output_ids, x), minlength=len(x))
        x -= row.frequency_penalty * counts + row.presence_penalty * (counts > 0)
    largest = _finite_maximum(x)
    if row.temperature > 0.0:
        x = (x - largest) / row.temperature
        _mask(x, row)
    return x


def _mask(x: torch.Tensor, row: SamplingRow) -> None:
    """top-k, top-p, min-p in place, on x whose largest is 0; of tied tokens the lower id stays."""
    if 0 < row.top_k < len(x):
        keep = _largest(x, row.top_k)
        x.copy_(torch.full_like(x, -torch.inf).scatter_(0, keep, x[keep]))
    if row.top_p < 1.0:
        likeliest, order = x.sort(descending=True, stable=True)
        reached = likeliest.double().softmax(0).cumsum(0) >= row.top_p
        x[order[1:][reached[:-1]]] = -torch.inf  # out: whatever follows the token that reached it
    if row.min_p > 0.0:
        x[x < math.log(row.min_p)] = -torch.inf  # the likeliest is at 0


def sample_reference(
    logits: torch.Tensor,
    rows: Sequence[SamplingRow],
    histories: Sequence[History],
    uniforms: torch.Tensor,
) -> torch.Tensor:
    """The meaning of `sample`: rows one by one.  [B, V], B rows, B histories, [B] -> [B] int64"""
    ids = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    for i, (row, (prompt_ids, output_ids)) in enumerate(zip(rows, histories, strict=True)):
        x = adjusted_logits_reference(logits[i], row, prompt_ids, output_ids)
        if row.temperature == 0.0:
            ids[i] = greedy_reference(x[None])[0]
        else:
            ids[i] = _inverse_cdf(x, float(uniforms[i]))
    return ids


def greedy_reference(logits: torch.Tensor) -> torch.Tensor:
    """The meaning of `greedy`.  [B, V] -> [B] int64"""
    x = logits.float()
    if not x.shape[-1]:
        return torch.full((len(x),), NOTHING, device=x.device)
    largest = x.amax(-1, keepdim=True)  # NaN spreads through the maximum
    # V - id at the largest, 0 elsewhere; torch's argmax promises no order among equals.
    place = torch.arange(x.shape[-1], 0, -1, device=x.device)
    return ((x == largest) * place).argmax(-1).masked_fill(~largest.isfinite()[:, 0], NOTHING)


def _inverse_cdf(x: torch.Tensor, u: float) -> torch.Tensor:
    cdf = x.double().softmax(0).cumsum(0)
    total = cdf[-1]
    # a number just below 1 may have been rounded up to 1: that is the last token that can be drawn
    last = torch.searchsorted(cdf, total)
    return torch.searchsorted(cdf, u * total, right=True).clamp(max=last)


def logprobs_reference(
    logits: torch.Tensor, ids: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The meaning of `logprobs`, in fp32.  [B, V], [B] -> [B], [B, top] int64, [B, top]"""
    scores = logits.float().log_softmax(-1)
    chosen = scores.gather(-1, ids[:, None].long())[:, 0]
    top_ids = torch.empty(len(scores), top, dtype=torch.int64, device=scores.device)
    for i, row in enumerate(logits.float()):
        _finite_maximum(row)
        top_ids[i] = _largest(row, top)
    return chosen, top_ids, scores.gather(-1, top_ids)


def _finite_maximum(x: torch.Tensor) -> float:
    largest = float(x.amax()) if len(x) else -math.inf  # NaN spreads through the maximum
    if not math.isfinite(largest):
        raise cannot_be_sampled(f"the largest logit is {largest}")
    return largest


def cannot_be_sampled(what: str) -> BadInput:
    """The error of a row that has no finite largest logit."""
    return BadInput(
        f"sampling: {what}, want a finite one: the model gave NaN or infinity, or logit_bias and "
        "suppressed ids leave no token to draw"
    )


def _largest(x: torch.Tensor, k: int) -> torch.Tensor:
    """Ids of the k largest, largest first; ties: lower id.  (topk alone promises no order.)"""
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=x.device)
    candidates = (x >= x.topk(k).values[-1]).nonzero()[:, 0]
    return candidates[x[candidates].sort(descending=True, stable=True).indices[:k]]


def _index(name: str, ids: Iterable[int], x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(check_ids(name, ids, x.shape[-1]), dtype=torch.int64, device=x.device)


def check_ids(name: str, ids: Iterable[int], vocab_size: int) -> list[int]:
    """`ids` as a list; BadInput where one is outside the vocabulary."""
    known = list(ids)
    if known and not (min(known) >= 0 and max(known) < vocab_size):
        raise BadInput(
            f"sampling: {name} holds ids from {min(known)} to {max(known)}, want 0 to "
            f"{vocab_size - 1}, the model's vocabulary"
        )
    return known
