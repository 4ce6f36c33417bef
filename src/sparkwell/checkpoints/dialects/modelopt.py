"""NVIDIA's ModelOpt: NVFP4 in X.weight with X.weight_scale and X.weight_scale_2, and FP8.

The payload is that of compressed-tensors; global scales are multipliers here, amax / 2688.
Settings stand in hf_quant_config.json, in config.json's quantization_config, or in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sparkwell import formats
from sparkwell.checkpoints.dialects import fp8
from sparkwell.checkpoints.dialects.compressed_tensors import read_nvfp4
from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.checkpoints.stored import (
    Declared,
    Module,
    Promise,
    Stored,
    check_multiple,
    check_part,
    mismatch,
    unsupported,
)

NAME = "modelopt"
FILE = "hf_quant_config.json"
LEAVES = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")
METHODS = ("modelopt", "modelopt_fp4", "modelopt_mixed")
MIXED = "MIXED_PRECISION"
ALGORITHMS: dict[str, Promise] = {
    "NVFP4": Promise("NVFP4", "nvfp4", "nvfp4", 16, static=True),
    "W4A16_NVFP4": Promise("W4A16_NVFP4", "nvfp4", "none", 16),
    "FP8": Promise("FP8", "fp8-rows", "fp8-tensor", static=True),
    "FP8_PER_CHANNEL_PER_TOKEN": Promise("FP8_PER_CHANNEL_PER_TOKEN", "fp8-rows", "fp8-token"),
    "FP8_PB_WO": Promise("FP8_PB_WO", "fp8-block", "none", fp8.BLOCK),
}


def declare(fields: Mapping[str, Any], file: Path) -> Declared:
    """quant_algo; with MIXED_PRECISION, quantized_layers says it of each module.

    exclude_modules and ignore are not read: tensors tell better.
    """
    inner = fields.get("quantization")
    fields = inner if isinstance(inner, dict) else fields
    name = fields.get("quant_algo")
    if name not in (None, *ALGORITHMS, MIXED):
        wanted = ", ".join((*ALGORITHMS, MIXED))
        raise unsupported(file, f"ModelOpt's quant_algo = {name!r}", wanted)
    size = fields.get("group_size")
    if name in ALGORITHMS and ALGORITHMS[name].kind == "nvfp4" and size not in (None, 16):
        raise unsupported(file, f"ModelOpt's {name} with group_size = {size!r}", "groups of 16")
    cache = fields.get("kv_cache_quant_algo")
    if cache is None and isinstance(fields.get("kv_cache_scheme"), dict):
        cache = f"{fields['kv_cache_scheme'].get('type')}"
    layers = fields.get("quantized_layers") if name == MIXED else None
    if not isinstance(layers, dict):
        layers = {}

    def promise(module: str) -> Promise | None:
        return _of_layer(layers, module) if name == MIXED else ALGORITHMS.get(str(name))

    quantizes = name is not None
    return Declared(NAME, file, promise, version=str(name), cache=cache, quantizes=quantizes)


def _of_layer(layers: Mapping[str, Any], module: str) -> Promise | None:
    entry = layers.get(module)
    if entry is None:
        entry = next(
            (v for key, v in layers.items() if "*" in key and fnmatchcase(module, key)), {}
        )
    algorithm = entry.get("quant_algo") if isinstance(entry, dict) else None
    return ALGORITHMS.get(str(algorithm))


def recognise(module: Module) -> Stored | None:
    """X.weight as bytes of two FP4 codes, with two scales."""
    if "pre_quant_scale" in module:
        info = module["pre_quant_scale"]
        raise mismatch(
            "a factor for each input of the layer is not supported",
            info,
            "ModelOpt's AWQ or SVDQuant, whose activations are multiplied by pre_quant_scale",
            "NVFP4 without it",
            "choose a version quantized without AWQ",
        )
    if "weight_scale_2" not in module:
        if "weight" in module and module["weight"].dtype == "U8" and "weight_scale" in module:
            module.need("weight_scale_2", "weight")
        return None
    weight = module.tensors.get("weight")
    if weight is None:
        info = module["weight_scale_2"]
        raise mismatch("scales without a weight", info, "no such weight", f"{module.name}.weight")
    module.matrix("weight", "U8")
    scales = module.need("weight_scale", "weight")
    n, k = weight.shape[0], 2 * weight.shape[1]
    check_multiple(weight, k, 16)
    check_part(scales, ("F8_E4M3",), ((n, k // 16),), weight)
    parts = {"codes": weight, "scales": scales, "global": module["weight_scale_2"]}
    if "input_scale" in module:
        parts["input"] = module["input_scale"]
    for role in ("global", "input"):
        if role in parts:
            check_part(parts[role], ("F32",), ((), (1,)), weight)
    activations = module.activations
    if module.promise is None and "input" in parts:
        activations = "nvfp4"
    return Stored(weight.name, NAME, "nvfp4", (n, k), parts, _read, activations, 16)


def _read(stored: Stored, checkpoint: Checkpoint) -> formats.Nvfp4:
    return read_nvfp4(stored, checkpoint, inverse=False)
