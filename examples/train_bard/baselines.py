"""Unigram and interpolated Kneser-Ney 5-gram over the model's own tokens.

N-grams are packed into 64-bit keys (11 bits a token), counted by sorting. Contexts never reach
across an evaluation window, so the baselines see exactly what the model sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BITS = 11
Keys = NDArray[np.uint64]


def pack(tokens: NDArray[np.integer], n: int) -> Keys:
    """The key of the n-gram that ends at each position n-1 .. of the last axis."""
    length = tokens.shape[-1] - n + 1
    key = np.zeros((*tokens.shape[:-1], max(length, 0)), dtype=np.uint64)
    for i in range(n):
        key = (key << np.uint64(BITS)) | tokens[..., i : i + length].astype(np.uint64)
    return key


def lookup(keys: Keys, values: NDArray, query: Keys) -> NDArray:
    """`values` at the sorted `keys`; zero where a queried key is absent."""
    where = np.minimum(np.searchsorted(keys, query), len(keys) - 1)
    return np.where(keys[where] == query, values[where], 0)


@dataclass(frozen=True)
class Order:
    """p(w|h) = max(count(hw) - d, 0) / total(h) + d * types(h) / total(h) * p(w|shorter h)."""

    grams: Keys
    counts: NDArray[np.float64]
    contexts: Keys
    totals: NDArray[np.float64]
    types: NDArray[np.float64]
    discount: float


def build(grams: Keys, counts: NDArray[np.float64]) -> Order:
    context = grams >> np.uint64(BITS)
    contexts, first = np.unique(context, return_index=True)
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    return Order(
        grams,
        counts,
        contexts,
        np.add.reduceat(counts, first),
        np.diff(np.append(first, len(grams))).astype(np.float64),
        float(once / (once + 2 * twice)),
    )


class KneserNey:
    def __init__(self, tokens: NDArray[np.integer], vocab: int, order: int = 5) -> None:
        self.vocab = vocab
        raw = {n: np.unique(pack(tokens, n), return_counts=True) for n in range(2, order + 1)}
        self.orders = {order: build(raw[order][0], raw[order][1].astype(np.float64))}
        for n in range(order - 1, 0, -1):
            # Lower orders count distinct left neighbours, not occurrences.
            mask = np.uint64((1 << (BITS * n)) - 1)
            suffixes, kinds = np.unique(raw[n + 1][0] & mask, return_counts=True)
            self.orders[n] = build(suffixes, kinds.astype(np.float64))

    def log_prob(self, windows: NDArray[np.integer]) -> NDArray[np.float64]:
        """windows: [B, T] -> [B, T-1] natural-log probabilities of tokens 1 .. T-1."""
        p = np.full((windows.shape[0], windows.shape[1] - 1), 1.0 / self.vocab)
        for n in sorted(self.orders):
            o = self.orders[n]
            grams = pack(windows, n)  # the gram at column i ends at token i + n - 1
            if n == 1:
                grams = grams[:, 1:]
            span = slice(max(n - 2, 0), None)
            context = grams >> np.uint64(BITS)
            total = lookup(o.contexts, o.totals, context)
            kinds = lookup(o.contexts, o.types, context)
            count = lookup(o.grams, o.counts, grams)
            seen = np.maximum(total, 1.0)
            mixed = (
                np.maximum(count - o.discount, 0) / seen + o.discount * kinds / seen * p[:, span]
            )
            p[:, span] = np.where(total > 0, mixed, p[:, span])
        return np.log(p)


def unigram(tokens: NDArray[np.integer], vocab: int, windows: NDArray[np.integer]) -> NDArray:
    counts = np.bincount(tokens, minlength=vocab) + 1.0
    return np.log(counts / counts.sum())[windows[:, 1:]]


def load(folder: Path, split: str) -> NDArray[np.int64]:
    return np.load(folder / f"{split}.npy").astype(np.int64)
