"""gpt-oss's MXFP4: the experts of a layer stacked, gate and up in turns.

experts.gate_up_proj_blocks U8 [e, 2 * width, k/32, 16], rows 2i of gate and 2i + 1 of up;
experts.down_proj_blocks U8 [e, n, k/32, 16]; `_scales` U8 [e, rows, k/32].  A model asks for an
expert's gate_proj, up_proj and down_proj by name, so each becomes a weight of its own here: rows
are picked, no byte changes.  Biases of the experts are left to the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkwell import formats
from sparkwell.checkpoints.header import TensorInfo
from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.checkpoints.stored import (
    Declared,
    Module,
    Promise,
    Stored,
    check_part,
    described,
    mismatch,
)
from sparkwell.checkpoints.values import check_scales
from sparkwell.lazy import later

if TYPE_CHECKING:
    import torch
else:  # headers and configs are understood without it
    torch = later("torch")

NAME = "mxfp4"  # as its quant_method
LEAVES = (
    *("gate_up_proj_blocks", "gate_up_proj_scales"),
    *("down_proj_blocks", "down_proj_scales"),
)
METHODS = (NAME,)
SHARDS = {"gate_up_proj": (("gate_proj", 0), ("up_proj", 1)), "down_proj": (("down_proj", 0),)}


def declare(fields: Mapping[str, Any], file: Path) -> Declared:
    """Nothing but the method; modules_to_not_convert is not read: tensors tell better."""
    promise = Promise("quant_method = 'mxfp4'", "mxfp4", "none", 32)
    return Declared(NAME, file, lambda module: promise, quantizes=True)


def recognise_all(module: Module) -> list[Stored]:
    """Each expert's weights, of the tensors of X.experts."""
    found = []
    for stem, shards in SHARDS.items():
        leaf = f"{stem}_blocks"
        if leaf not in module:
            if f"{stem}_scales" in module:
                info = module[f"{stem}_scales"]
                wanted = f"{module.name}.{leaf}"
                raise mismatch("scales without a weight", info, "no such weight", wanted)
            continue
        blocks, scales = module[leaf], module.need(f"{stem}_scales", leaf)
        rows = _check(blocks, scales, len(shards))
        k = 32 * blocks.shape[2]
        parts = {"codes": blocks, "scales": scales}
        for expert in range(blocks.shape[0]):
            for part, first in shards:
                name = f"{module.name}.{expert}.{part}.weight"
                source = (expert, first, len(shards))
                shape = (rows // len(shards), k)
                found.append(Stored(name, NAME, "mxfp4", shape, parts, _read, "none", 32, source))
    return found


def _check(blocks: TensorInfo, scales: TensorInfo, shards: int) -> int:
    if blocks.dtype != "U8" or len(blocks.shape) != 4 or blocks.shape[3] != 16:
        wanted = "U8 [experts, rows, k/32, 16]"
        raise mismatch("packed weight of a wrong dtype", blocks, described(blocks), wanted)
    if blocks.shape[1] % shards:
        came = f"{blocks.shape[1]} rows"
        raise mismatch("gate and up do not take turns", blocks, came, "an even number")
    check_part(scales, ("U8", "F8_E8M0"), (blocks.shape[:3],), blocks)
    return blocks.shape[1]


def _read(stored: Stored, checkpoint: Checkpoint) -> formats.Mxfp4:
    assert stored.source is not None
    expert, first, step = stored.source
    scales = checkpoint.read_one(stored.parts["scales"].name, expert).view(torch.uint8)
    scales = scales[first::step].contiguous()
    check_scales(stored.parts["scales"], scales)
    codes = checkpoint.read_one(stored.parts["codes"].name, expert)[first::step]
    return formats.Mxfp4(codes.flatten(1).contiguous(), scales, stored.activations)
