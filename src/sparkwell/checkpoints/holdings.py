"""A checkpoint as tables: how each part of a model is stored, and what that takes."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.checkpoints.stored import Declared, Stored
from sparkwell.checkpoints.survey import Survey

LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.+)")
EXPERT = re.compile(r"experts\.\d+\.")
VECTORS = "norms, biases and other vectors"
WORDS = {"fp8-block": "fp8 128x128", "fp8-rows": "fp8", "nvfp4": "nvfp4", "mxfp4": "mxfp4"}


@dataclass(frozen=True)
class Held:
    """One weight with its scales, or a tensor that belongs to none."""

    name: str
    scheme: str
    activations: str
    parameters: int
    nbytes: int
    vector: bool = False


@dataclass(frozen=True)
class Row:
    """Weights of one scheme: of some parts of some layers; `layers` is empty outside of any."""

    scheme: str
    activations: str
    weights: int
    parameters: int
    nbytes: int
    parts: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()

    @property
    def bits(self) -> float:
        """Bits a parameter, scales included."""
        return 8 * self.nbytes / self.parameters if self.parameters else 0.0


def holdings(checkpoint: Checkpoint, found: Survey) -> list[Held]:
    """Everything that the files hold, by name; numbers in names count as numbers."""
    rows = [
        Held(name, _scheme(s, found.declared), s.activations, math.prod(s.shape), s.nbytes)
        for name, s in found.weights.items()
    ]
    attached = {part.name for s in found.weights.values() for part in s.parts.values()}
    rows += [
        Held(name, info.dtype.lower(), "none", math.prod(info.shape), info.nbytes,
             len(info.shape) < 2)
        for name, info in checkpoint.tensors.items()
        if name not in attached
    ]  # fmt: skip
    return sorted(rows, key=lambda row: _natural(row.name))


def by_scheme(held: Iterable[Held]) -> list[Row]:
    """One row a scheme, the largest first."""
    found: dict[tuple[str, str], list[Held]] = defaultdict(list)
    for one in held:
        found[one.scheme, one.activations].append(one)
    rows = [_row(key, members) for key, members in found.items()]
    return sorted(rows, key=lambda row: (-row.nbytes, row.scheme, row.activations))


def by_part(held: Iterable[Held], *, each_layer: bool = False) -> list[Row]:
    """Rows of parts that are stored alike in the same layers, in the order of the names.

    each_layer: a layer's own rows, in place of ranges of layers.
    """
    parts: dict[tuple[str, str, str], list[tuple[int | None, Held]]] = defaultdict(list)
    for one in held:
        layer, part = _place(one)
        parts[part, one.scheme, one.activations].append((layer, one))
    rows: dict[tuple[Any, ...], tuple[list[str], list[Held]]] = {}
    for (part, scheme, activations), members in parts.items():
        layers = tuple(sorted({layer for layer, _ in members if layer is not None}))
        for some in [(layer,) for layer in layers] if each_layer and layers else [layers]:
            names, weights = rows.setdefault((some, scheme, activations), ([], []))
            names.append(part)
            weights += [one for layer, one in members if not some or layer in some]
    return sorted(
        (
            _row((scheme, activations), weights, tuple(names), layers)
            for (layers, scheme, activations), (names, weights) in rows.items()
        ),
        key=lambda row: row.layers[:1],
    )


def ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 -> "0-2, 5"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def braced(parts: Iterable[str]) -> str:
    """a.b.c, a.b.d -> "a.b.{c, d}"."""
    leaves: dict[str, list[str]] = defaultdict(list)
    for part in parts:
        stem, dot, leaf = part.rpartition(".")
        leaves[stem + dot].append(leaf)
    return ", ".join(
        stem + (f"{{{', '.join(found)}}}" if stem and len(found) > 1 else ", ".join(found))
        for stem, found in leaves.items()
    )


def _row(
    key: tuple[str, str],
    members: list[Held],
    parts: tuple[str, ...] = (),
    layers: tuple[int, ...] = (),
) -> Row:
    parameters, nbytes = sum(m.parameters for m in members), sum(m.nbytes for m in members)
    return Row(*key, len(members), parameters, nbytes, parts, layers)


def _place(one: Held) -> tuple[int | None, str]:
    """Its layer, and its part of that layer; experts are one part, vectors all over another."""
    if one.vector:
        return None, VECTORS
    match = LAYER.fullmatch(one.name)
    layer, part = (int(match[1]), match[2]) if match else (None, one.name)
    return layer, EXPERT.sub("experts.*.", part).removesuffix(".weight")


def _scheme(stored: Stored, declared: Declared) -> str:
    if stored.kind != "int4":
        return WORDS[stored.kind]
    promise = declared.promise(stored.name.removesuffix(".weight"))
    rows = stored.group == stored.shape[1] and (promise is None or promise.group is None)
    return "int4 per row" if rows else f"int4 g{stored.group}"


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
