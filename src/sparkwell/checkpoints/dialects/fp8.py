"""FP8 weights: one scale per tensor, per row or per block; compressed-tensors, ModelOpt, DeepSeek.

w = e4m3 * scale in all of them; `weight_scale_inv` is multiplied too, despite its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkwell import formats
from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.checkpoints.stored import (
    FLOATS,
    Declared,
    Kind,
    Module,
    Promise,
    Stored,
    check_part,
    described,
    mismatch,
    unsupported,
)
from sparkwell.checkpoints.values import read_input_scale, read_scales
from sparkwell.lazy import later

if TYPE_CHECKING:
    import torch
else:  # headers and configs are understood without it
    torch = later("torch")

NAME = "fp8"
LEAVES = ("weight_scale_inv", "weight_scale", "input_scale")
METHODS = (NAME,)
WITH_SCALE = ("compressed-tensors", "modelopt")  # which name an FP8 weight's scales weight_scale
BLOCK = 128
SCALE_DTYPES = ("F32", "BF16", "F8_E8M0")  # of blocks; all exact in fp32


def declare(fields: Mapping[str, Any], file: Path) -> Declared:
    """quant_method "fp8": DeepSeek's blocks, or with no weight_block_size one scale a tensor."""
    block, scheme = fields.get("weight_block_size"), fields.get("activation_scheme", "dynamic")
    if block is not None and block != [BLOCK, BLOCK]:
        raise unsupported(file, f"quant_method = 'fp8' with weight_block_size = {block!r}")
    if fields.get("fmt", "e4m3") != "e4m3":
        raise unsupported(file, f"FP8 of fmt {fields.get('fmt')!r}")
    if scheme not in (("dynamic",) if block else ("dynamic", "static")):
        raise unsupported(file, f"FP8 with activation_scheme = {scheme!r}")
    if block:
        promise = Promise("weight_block_size", "fp8-block", "fp8-group", BLOCK)
    else:
        static = scheme == "static"
        promise = Promise("quant_method = 'fp8'", "fp8-rows", "fp8-tensor", static=static)
    pow2 = fields.get("scale_fmt") == "ue8m0"
    return Declared(NAME, file, lambda module: promise, pow2, quantizes=True)


def recognise_inverse(module: Module) -> Stored | None:
    """DeepSeek's: X.weight and X.weight_scale_inv."""
    if "weight_scale_inv" not in module:
        if "weight" not in module or module["weight"].dtype != "F8_E4M3":
            return None
        if "weight_scale" in module or "weight_scale_2" in module:
            return None
        info = module["weight"]
        wanted = f"{info.name}_scale_inv or {info.name}_scale"
        came = f"{described(info)} and no {info.name}_scale_inv"
        raise mismatch("FP8 weight without scales", info, came, wanted)
    scales = module["weight_scale_inv"]
    weight = module.tensors.get("weight")
    if weight is None or weight.dtype != "F8_E4M3":
        came = "no such weight" if weight is None else f"weight is {weight.dtype}"
        raise mismatch("scales without an FP8 weight", scales, came, "F8_E4M3 weight")
    n, k = _matrix(module)
    check_part(scales, SCALE_DTYPES, ((-(-n // BLOCK), -(-k // BLOCK)),), weight)
    parts = {"values": weight, "scales": scales}
    name = weight.name
    return Stored(name, NAME, "fp8-block", (n, k), parts, _read_block, "fp8-group", BLOCK)


def recognise(module: Module) -> Stored | None:
    """X.weight in e4m3 with X.weight_scale: per tensor, per row or per block, by its shape."""
    method = module.declared.method
    dialect = method if method in WITH_SCALE else NAME
    if "weight_scale" not in module or "weight" not in module or "weight_scale_2" in module:
        return None
    weight, scales = module["weight"], module["weight_scale"]
    if weight.dtype != "F8_E4M3":
        return None
    n, k = _matrix(module)
    if scales.dtype in ("U8", "F8_E8M0") and scales.shape == (n, -(-k // 32)):
        raise unsupported(weight.file, f"MXFP8 in {weight.name}")
    rows, blocks = -(-n // BLOCK), -(-k // BLOCK)
    by_block = ((rows, blocks), (rows, 1, blocks, 1))
    by_row = ((), (1,), (1, 1), (n, 1), (n,))
    says_block = module.promise is not None and module.promise.kind == "fp8-block"
    kind: Kind = "fp8-block"
    if scales.shape in by_row and not (says_block and scales.shape in by_block):
        kind = "fp8-rows"
    check_part(scales, FLOATS, (*by_row, *by_block), weight)
    parts = {"values": weight, "scales": scales}
    name, activations = weight.name, module.activations
    if kind == "fp8-block":
        if activations not in ("none", "fp8-group"):
            activations = "none"
        return Stored(name, dialect, kind, (n, k), parts, _read_block, activations, BLOCK)
    if "input_scale" in module:
        parts["input"] = module["input_scale"]
        check_part(parts["input"], FLOATS, ((), (1,), (1, 1)), weight)
        if module.promise is None:
            activations = "fp8-tensor"
    return Stored(name, dialect, kind, (n, k), parts, _read_rows, activations)


def _matrix(module: Module) -> tuple[int, int]:
    info = module["weight"]
    if len(info.shape) != 2:
        raise mismatch("FP8 weight is no matrix", info, str(list(info.shape)), "[n, k]")
    return info.shape[0], info.shape[1]


def _read_block(stored: Stored, checkpoint: Checkpoint) -> formats.Fp8Block:
    scales = read_scales(checkpoint, stored.parts["scales"]).float()
    if scales.ndim == 4:
        scales = scales[:, 0, :, 0]
    values = checkpoint.read(stored.parts["values"].name)
    return formats.Fp8Block(values, scales, (BLOCK, BLOCK), stored.activations)


def _read_rows(stored: Stored, checkpoint: Checkpoint) -> formats.Fp8Rows:
    scales = read_scales(checkpoint, stored.parts["scales"]).float().reshape(-1)
    scales = scales.expand(stored.shape[0]).contiguous()
    given = read_input_scale(checkpoint, stored.parts.get("input"), inverse=False)
    values = checkpoint.read(stored.parts["values"].name)
    if stored.activations == "none":
        given = None
    assert scales.dtype == torch.float32
    return formats.Fp8Rows(values, scales, stored.activations, given)
