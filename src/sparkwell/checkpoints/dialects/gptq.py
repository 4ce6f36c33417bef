"""GPTQ, as AutoGPTQ and GPTQModel write it: transposed, eight rows of k to a word.

qweight [k/8, n] int32, qzeros [k/group, n/8] int32, scales [k/group, n], g_idx [k] int32: the group
of each row; w = (q - z) * s.  Version 1 stores (z - 1) modulo 16, version 2 z.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkwell import formats
from sparkwell.checkpoints.dialects.nibbles import group_of, pack_rows, read_order, unpack_words
from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.checkpoints.stored import (
    FLOATS,
    Declared,
    Module,
    Promise,
    Stored,
    check_part,
    mismatch,
    unsupported,
)
from sparkwell.checkpoints.values import read_scales
from sparkwell.errors import BadCheckpoint
from sparkwell.formats.limits import INT4_MIDDLE as MIDDLE
from sparkwell.lazy import later

if TYPE_CHECKING:
    import torch
else:  # headers and configs are understood without it
    torch = later("torch")

NAME = "gptq"
LEAVES = ("qweight", "qzeros", "scales", "g_idx")
METHODS = ("gptq",)
VERSIONS = ("gptq", "gptq_v2")


def declare(fields: Mapping[str, Any], file: Path) -> Declared:
    """bits 4; checkpoint_format tells the version, group_size -1 is one group a row."""
    bits, version = fields.get("bits"), fields.get("checkpoint_format", "gptq")
    if bits != 4 or version not in VERSIONS:
        came = f"GPTQ of {bits!r} bits in checkpoint_format {version!r}"
        raise unsupported(file, came, f"GPTQ of 4 bits in one of {', '.join(VERSIONS)}")
    size = fields.get("group_size")
    group = size if isinstance(size, int) and size > 0 else None
    symmetric = fields.get("sym") if isinstance(fields.get("sym"), bool) else None
    promise = Promise("quant_method = 'gptq'", "int4", "none", group, symmetric=symmetric)
    return Declared(NAME, file, lambda module: promise, version=str(version), quantizes=True)


def recognise(module: Module) -> Stored | None:
    """Words along k, where scales have a column for each column of words."""
    if "qweight" not in module:
        return None
    weight = module.matrix("qweight", "I32")
    scales = module.need("scales", "qweight")
    k, n = 8 * weight.shape[0], weight.shape[1]
    groups = max(1, scales.shape[0]) if scales.shape else 1
    check_part(scales, FLOATS, ((groups, n),), weight)
    parts = {"codes": weight, "scales": scales, "zeros": module.need("qzeros", "qweight")}
    check_part(parts["zeros"], ("I32",), ((groups, -(-n // 8)),), weight)
    if "g_idx" in module:
        parts["order"] = module["g_idx"]
        check_part(parts["order"], ("I32",), ((k,),), weight)
    version = module.declared.version
    read = _read_v2 if version == "gptq_v2" else _read_v1
    if module.promise is not None and module.promise.symmetric:
        read = _read_v2_symmetric if version == "gptq_v2" else _read_v1_symmetric
    name = f"{module.name}.weight"
    group = group_of(module, weight, k, groups)
    return Stored(name, NAME, "int4", (n, k), parts, read, group=group, check=_check)


def _read_v1(stored: Stored, checkpoint: Checkpoint) -> formats.Int4Group:
    return _read(stored, checkpoint, offset=1, symmetric=False)


def _read_v2(stored: Stored, checkpoint: Checkpoint) -> formats.Int4Group:
    return _read(stored, checkpoint, offset=0, symmetric=False)


def _read_v1_symmetric(stored: Stored, checkpoint: Checkpoint) -> formats.Int4Group:
    return _read(stored, checkpoint, offset=1, symmetric=True)


def _read_v2_symmetric(stored: Stored, checkpoint: Checkpoint) -> formats.Int4Group:
    return _read(stored, checkpoint, offset=0, symmetric=True)


def _read(
    stored: Stored, checkpoint: Checkpoint, *, offset: int, symmetric: bool
) -> formats.Int4Group:
    assert stored.group is not None
    scales = read_scales(checkpoint, stored.parts["scales"]).T.contiguous()
    zeros = _zeros(stored, checkpoint, offset, symmetric)
    words = checkpoint.read(stored.parts["codes"].name)
    codes = unpack_words(words.T).flatten(-2)  # [k/8, n] -> [n, k]
    order = read_order(stored, checkpoint)
    if order is not None:
        codes = codes[:, order.long()]
    return formats.Int4Group(pack_rows(codes), scales, zeros, stored.group, order)


def _zeros(
    stored: Stored, checkpoint: Checkpoint, offset: int, symmetric: bool
) -> torch.Tensor | None:
    """Zero points [n, k/group]; None where the config says that all are 8.

    Some published symmetric files are of version 2 and say 1; 7 and 8 everywhere tell them apart.
    """
    info = stored.parts["zeros"]
    words = unpack_words(checkpoint.read(info.name)).flatten(-2)[:, : stored.shape[0]]
    if not symmetric:
        return ((words + offset) & 15).T.contiguous()
    if not bool((words == MIDDLE - 1).all() | (words == MIDDLE).all()):
        came = f"{words.min()} to {words.max()}"
        wanted = f"{MIDDLE - 1} everywhere (version 1), or {MIDDLE} (version 2)"
        raise mismatch("sym = true in the config, and other zero points", info, came, wanted)
    return None


def _check(stored: Stored, checkpoint: Checkpoint) -> BadCheckpoint | None:
    read_order(stored, checkpoint)
    if stored.read not in (_read_v1_symmetric, _read_v2_symmetric):
        return None
    offset = 1 if stored.read is _read_v1_symmetric else 0
    _zeros(stored, checkpoint, offset, symmetric=True)
    info = stored.parts["zeros"]
    found = int(unpack_words(checkpoint.read_one(info.name, 0)[:1]).max())
    if found + offset == MIDDLE:
        return None
    return mismatch(
        "zero points are counted in another way than checkpoint_format says",
        info,
        f"{found} everywhere",
        f"{MIDDLE - offset}",
        f"know that programs which trust the config compute nonsense; here they count as {MIDDLE}",
    )
