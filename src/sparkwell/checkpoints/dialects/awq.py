"""AWQ's GEMM layout: transposed, eight columns to a word in the order 0 2 4 6 1 3 5 7.

qweight [k, n/8] int32, qzeros [k/group, n/8] int32, scales [k/group, n]; w = (q - z) * s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkwell import formats
from sparkwell.checkpoints.dialects.nibbles import group_of, pack_rows, unpack_words
from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.checkpoints.stored import (
    FLOATS,
    Declared,
    Module,
    Promise,
    Stored,
    check_part,
    unsupported,
)
from sparkwell.checkpoints.values import read_scales
from sparkwell.lazy import later

if TYPE_CHECKING:
    import torch
else:  # headers and configs are understood without it
    torch = later("torch")

NAME = "awq"
METHODS = ("awq",)
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble of a word that holds column 0, 1, 2, ...


def declare(fields: Mapping[str, Any], file: Path) -> Declared:
    """bits 4 and version "gemm"; modules_to_not_convert is not read: tensors tell better."""
    bits = fields.get("bits", fields.get("w_bit", 4))
    version = str(fields.get("version", "gemm")).lower()
    size = fields.get("group_size", fields.get("q_group_size"))
    if bits != 4 or version != "gemm":
        came = f"AWQ of {bits!r} bits in layout {version!r}"
        raise unsupported(file, came, "AWQ of 4 bits in layout 'gemm'")
    group = size if isinstance(size, int) and size > 0 else None
    promise = Promise("quant_method = 'awq'", "int4", "none", group)
    return Declared(NAME, file, lambda module: promise, quantizes=True)


def recognise(module: Module) -> Stored | None:
    """Words along n, where scales have eight columns for each."""
    if "qweight" not in module or "g_idx" in module or "scales" not in module:
        return None
    weight, scales = module.matrix("qweight", "I32"), module["scales"]
    k, n = weight.shape[0], 8 * weight.shape[1]
    if len(scales.shape) != 2 or scales.shape[1] != n:
        return None
    groups = max(1, scales.shape[0])
    check_part(scales, FLOATS, ((groups, n),), weight)
    parts = {"codes": weight, "scales": scales}
    if "qzeros" in module:
        parts["zeros"] = module["qzeros"]
        check_part(parts["zeros"], ("I32",), ((groups, n // 8),), weight)
    name = f"{module.name}.weight"
    return Stored(
        name, NAME, "int4", (n, k), parts, _read, group=group_of(module, weight, k, groups)
    )


def _columns(words: torch.Tensor) -> torch.Tensor:
    """[rows, n/8] int32 -> [n, rows] codes."""
    return unpack_words(words)[..., PLACES].flatten(-2).T


def _read(stored: Stored, checkpoint: Checkpoint) -> formats.Int4Group:
    parts = stored.parts
    scales = read_scales(checkpoint, parts["scales"]).T.contiguous()
    codes = pack_rows(_columns(checkpoint.read(parts["codes"].name))).contiguous()
    zeros = None
    if "zeros" in parts:
        zeros = _columns(checkpoint.read(parts["zeros"].name)).contiguous()
    assert stored.group is not None
    return formats.Int4Group(codes, scales, zeros, stored.group)
