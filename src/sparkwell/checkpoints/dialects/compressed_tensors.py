"""compressed-tensors, as llm-compressor writes it: X.weight_packed beside its scales.

Formats `nvfp4-pack-quantized`, `mxfp4-pack-quantized` and `pack-quantized` (INT4); its
`float-quantized` FP8 is read by `fp8`.  Global scales are divisors.  Names and shapes are those of
the library's version 0.20.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkwell import formats
from sparkwell.checkpoints.dialects import fp8
from sparkwell.checkpoints.dialects.nibbles import group_of, pack_rows, read_order, unpack_words
from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.checkpoints.stored import (
    FLOATS,
    Declared,
    Kind,
    Module,
    Promise,
    Stored,
    check_multiple,
    check_part,
    mismatch,
    unsupported,
)
from sparkwell.checkpoints.values import read_factor, read_input_scale, read_scales
from sparkwell.errors import BadCheckpoint
from sparkwell.lazy import later

if TYPE_CHECKING:
    import torch

    from sparkwell.formats.quantized import Activations
else:  # headers and configs are understood without it
    torch = later("torch")

NAME = "compressed-tensors"
LEAVES = (
    *("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"),
    *("weight_zero_point", "weight_shape", "weight_g_idx", "input_scale", "input_zero_point"),
)
METHODS = (NAME,)

# ---------------------------------------------------------------- what the config says


@dataclass(frozen=True)
class _Group:
    """One of config_groups: the modules it is meant for, and what it says of them."""

    targets: tuple[str, ...]
    promise: Promise


def declare(fields: Mapping[str, Any], file: Path) -> Declared:
    """config_groups, each with targets; `ignore` is not read, since tensors tell better."""
    groups = fields.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(g, dict) for g in groups.values()):
        raise unsupported(file, f"config_groups = {groups!r:.100}")
    transforms = fields.get("transform_config")
    if isinstance(transforms, dict) and transforms.get("config_groups"):
        came = f"transform_config with {', '.join(transforms['config_groups'])}"
        raise unsupported(file, came, "weights whose inputs are not rotated at run time")
    found = [_group(name, group, file) for name, group in groups.items()]

    def promise(module: str) -> Promise | None:
        return _match(found, module)

    cache = fields.get("kv_cache_scheme")
    said = None
    if isinstance(cache, dict):
        said = f"{cache.get('type')} of {cache.get('num_bits')} bits, {cache.get('strategy')}"
    quantizes = any(group.promise.kind is not None for group in found)
    integers = any(
        isinstance(inputs := group.get("input_activations"), dict) and inputs.get("type") == "int"
        for group in groups.values()
    )
    return Declared(
        NAME, file, promise, cache=said, quantizes=quantizes, integer_activations=integers
    )


def _group(name: str, group: Mapping[str, Any], file: Path) -> _Group:
    where = f"config_groups.{name}"
    targets, weights = group.get("targets"), group.get("weights")
    if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
        raise unsupported(file, f"{where}.targets = {targets!r:.100}")
    for target in targets:
        try:
            re.compile(target.removeprefix("re:"))
        except re.error as error:
            raise unsupported(file, f"{where}.targets: {target!r} ({error})") from error
    inputs = group.get("input_activations")
    if weights is None:
        return _Group(tuple(targets), Promise(where))
    if not isinstance(weights, dict) or not isinstance(inputs, dict | None):
        raise unsupported(file, f"{where}: weights = {weights!r:.100}")
    kind = _kind(weights)
    if kind is None:
        kinds = ", ".join(f"{k} {weights.get(k)}" for k in ("num_bits", "type", "strategy"))
        of = f", group_size {weights['group_size']}" if weights.get("group_size") else ""
        raise unsupported(file, f"{where}.weights: {kinds}{of}")
    size = weights.get("group_size") if weights.get("strategy") == "group" else None
    static = isinstance(inputs, dict) and inputs.get("dynamic") in (False, "local")
    activations, symmetric = _activations(inputs), bool(weights.get("symmetric", True))
    promise = Promise(where, kind, activations, size, static and kind != "int4", symmetric)
    return _Group(tuple(targets), promise)


def _kind(weights: Mapping[str, Any]) -> Kind | None:
    bits, number, strategy = (weights.get(key) for key in ("num_bits", "type", "strategy"))
    size = weights.get("group_size")
    if (bits, number) == (8, "float"):
        if strategy == "block":
            blocks = weights.get("block_structure")
            return "fp8-block" if blocks == [fp8.BLOCK, fp8.BLOCK] else None
        return "fp8-rows" if strategy in ("tensor", "channel") else None
    if (bits, number) == (4, "float"):
        return {("tensor_group", 16): "nvfp4", ("group", 32): "mxfp4"}.get((strategy, size))  # type: ignore[return-value,arg-type]
    if (bits, number) == (4, "int") and strategy in ("group", "channel"):
        return "int4"
    return None


def _activations(inputs: Mapping[str, Any] | None) -> Activations:
    """Integer activations count as none: nothing here multiplies with them."""
    if inputs is None or inputs.get("type") != "float":
        return "none"
    strategy = inputs.get("strategy")
    if inputs.get("num_bits") == 4:
        return "nvfp4" if strategy == "tensor_group" else "mxfp4"
    if strategy == "token":
        return "fp8-token"
    return "fp8-tensor" if strategy == "tensor" else "fp8-group"


def _match(groups: list[_Group], module: str) -> Promise | None:
    """Exact names before patterns before names of classes, as the library has it."""
    ranked = [(group, target) for group in groups for target in group.targets]
    for group, target in ranked:
        if target == module:
            return group.promise
    for group, target in ranked:
        if target.startswith("re:") and re.match(target.removeprefix("re:"), module):
            return group.promise
    # What class a module is of cannot be told from its tensors; all quantized ones are "Linear".
    return next((group.promise for group, target in ranked if target == "Linear"), None)


# ---------------------------------------------------------------- what the tensors are


def recognise(module: Module) -> Stored | None:
    """X.weight_packed: bytes of two FP4 codes, or words of eight INT4 ones."""
    if "weight_packed" not in module:
        return None
    packed = module.matrix("weight_packed", "U8", "I32")
    scales = module.need("weight_scale", "weight_packed")
    if packed.dtype == "I32":
        return _int4(module)
    n, k = packed.shape[0], 2 * packed.shape[1]
    name, parts = f"{module.name}.weight", {"codes": packed, "scales": scales}
    if scales.dtype in ("U8", "F8_E8M0"):
        check_multiple(packed, k, 32)
        check_part(scales, ("U8", "F8_E8M0"), ((n, k // 32),), packed)
        return Stored(name, NAME, "mxfp4", (n, k), parts, read_mxfp4, module.activations, 32)
    check_multiple(packed, k, 16)
    check_part(scales, ("F8_E4M3",), ((n, k // 16),), packed)
    parts["global"] = module.need("weight_global_scale", "weight_packed")
    check_part(parts["global"], ("F32",), ((1,), ()), packed)
    if "input_global_scale" in module:
        parts["input"] = module["input_global_scale"]
        check_part(parts["input"], ("F32",), ((1,), ()), packed)
    activations = module.activations
    if module.promise is None and "input" in parts:
        activations = "nvfp4"
    return Stored(name, NAME, "nvfp4", (n, k), parts, _read_nvfp4, activations, 16)


def _int4(module: Module) -> Stored:
    packed, scales = module["weight_packed"], module["weight_scale"]
    n, k = packed.shape[0], 8 * packed.shape[1]
    groups = scales.shape[1] if len(scales.shape) == 2 else 1
    check_part(scales, FLOATS, ((n, groups),), packed)
    group = group_of(module, packed, k, groups)
    parts = {"codes": packed, "scales": scales}
    if "weight_shape" in module:
        parts["shape"] = module["weight_shape"]
    if "weight_zero_point" in module:
        zeros = parts["zeros"] = module["weight_zero_point"]
        check_part(zeros, ("I32",), ((-(-n // 8), groups),), packed)
    elif module.promise is not None and module.promise.symmetric is False:
        module.need("weight_zero_point", "weight_packed")
    if "weight_g_idx" in module:
        parts["order"] = module["weight_g_idx"]
        check_part(parts["order"], ("I32",), ((k,),), packed)
    name = f"{module.name}.weight"
    return Stored(name, NAME, "int4", (n, k), parts, _read_int4, group=group, check=_check_int4)


# ---------------------------------------------------------------- reading


def read_mxfp4(stored: Stored, checkpoint: Checkpoint) -> formats.Mxfp4:
    """Codes and scales as they are."""
    scales = read_scales(checkpoint, stored.parts["scales"]).view(torch.uint8)
    return formats.Mxfp4(checkpoint.read(stored.parts["codes"].name), scales, stored.activations)


def _read_nvfp4(stored: Stored, checkpoint: Checkpoint) -> formats.Nvfp4:
    return read_nvfp4(stored, checkpoint, inverse=True)


def read_nvfp4(stored: Stored, checkpoint: Checkpoint, *, inverse: bool) -> formats.Nvfp4:
    """Codes and scales as they are, the global scale once a row.

    inverse: global scales are divisors in the file.
    """
    parts = stored.parts
    scales = read_scales(checkpoint, parts["scales"])
    factor = read_factor(checkpoint, parts["global"], inverse=inverse)
    given = None
    if stored.activations != "none":
        given = read_input_scale(checkpoint, parts.get("input"), inverse=inverse)
    rows = factor.expand(stored.shape[0]).contiguous()
    codes = checkpoint.read(parts["codes"].name)
    return formats.Nvfp4(codes, scales, rows, stored.activations, given)


def _read_int4(stored: Stored, checkpoint: Checkpoint) -> formats.Int4Group:
    """Words of eight nibbles, value + 8, the first in the lowest: the canonical bytes already."""
    parts, (n, k) = stored.parts, stored.shape
    assert stored.group is not None
    _check_shape(stored, checkpoint)
    scales = read_scales(checkpoint, parts["scales"])
    codes = checkpoint.read(parts["codes"].name).view(torch.uint8)
    zeros = None
    if "zeros" in parts:  # packed along n
        words = checkpoint.read(parts["zeros"].name)
        zeros = unpack_words(words.T).reshape(words.shape[1], -1)[:, :n].T.contiguous()
    order = read_order(stored, checkpoint)
    if order is not None:
        codes = pack_rows(unpack_words(codes.view(torch.int32)).reshape(n, k)[:, order.long()])
    return formats.Int4Group(codes, scales, zeros, stored.group, order)


def _check_shape(stored: Stored, checkpoint: Checkpoint) -> None:
    info = stored.parts.get("shape")
    shape = list(stored.shape) if info is None else checkpoint.read(info.name).tolist()
    if info is not None and shape != list(stored.shape):
        problem = "weight_shape contradicts weight_packed"
        raise mismatch(problem, info, str(shape), str(list(stored.shape)))


def _check_int4(stored: Stored, checkpoint: Checkpoint) -> BadCheckpoint | None:
    _check_shape(stored, checkpoint)
    read_order(stored, checkpoint)
    return None
