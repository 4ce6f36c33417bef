"""INT4 codes in int32 words, and GPTQ's act-order: from every packing to rows of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparkwell.checkpoints.header import TensorInfo
from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.checkpoints.stored import Module, Stored, check_multiple, mismatch
from sparkwell.lazy import later

if TYPE_CHECKING:
    import torch
else:  # headers and configs are understood without it
    torch = later("torch")


def unpack_words(words: torch.Tensor) -> torch.Tensor:
    """int32 [...] -> uint8 [..., 8]: the nibbles of each word, the lowest first."""
    raw = words.contiguous().view(torch.uint8)  # little-endian hosts only, as safetensors' data
    raw = raw.reshape(*words.shape, 4)
    return torch.stack((raw & 15, raw >> 4), -1).flatten(-2)


def pack_rows(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [n, k] of 0..15 -> [n, k/2]: the even column in the low nibble."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def group_of(module: Module, weight: TensorInfo, k: int, groups: int) -> int:
    """Values of one scale, of `groups` in a row of k; checked against what the config says.

    Raises BadCheckpoint where a row ends inside a group, or the config says another size.
    """
    said = module.promise
    if said is not None and said.group:
        check_multiple(weight, k, said.group)
        if groups != k // said.group:
            came = f"{groups} scales for {k} values of {weight.name}"
            wanted = f"{k // said.group}: groups of {said.group}, says {said.said}"
            raise mismatch("number of scales contradicts the group size", weight, came, wanted)
    check_multiple(weight, k, -(-k // max(1, groups)))
    return k // max(1, groups)


def read_order(stored: Stored, checkpoint: Checkpoint) -> torch.Tensor | None:
    """The columns sorted by the group each belongs to; None where they are so already.

    Returns [k] int32: place j of the sorted order holds column order[j].
    Raises BadCheckpoint unless each group has exactly its number of columns.
    """
    info = stored.parts.get("order")
    if info is None:
        return None
    groups, size = checkpoint.read(info.name), stored.group
    assert size is not None
    k = len(groups)
    order = torch.argsort(groups, stable=True)
    if not torch.equal(groups[order], torch.arange(k, dtype=groups.dtype) // size):
        came = f"{len(groups.unique())} groups, numbered {groups.min()} to {groups.max()}"
        wanted = f"groups 0 to {k // size - 1}, each of {size} of the {k} columns"
        raise mismatch("columns of the groups do not fit", info, came, wanted)
    if torch.equal(order, torch.arange(k)):
        return None
    return order.int()
