"""Quantized checkpoints of every dialect, and what their values are by the dialect's own formula.

compressed-tensors' tensors and configs are written by that library.  The others are written here,
word by word from the formats' descriptions; nothing of the package under test takes part.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import (
    QuantizationConfig,
    QuantizationScheme,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import load_file, save_file

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E4M3 = torch.float8_e4m3fn
Tensors = dict[str, torch.Tensor]
Written = tuple[Tensors, torch.Tensor]  # by leaf, and the dequantized weight
KEPT = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "weights_proj", "e_score")


@dataclass(frozen=True)
class Dialect:
    """One way to store a model: its config and how it writes one weight.

    kind, activations: what it should be recognised as.
    """

    name: str
    kind: str
    config: dict[str, Any]
    write: Callable[[torch.Tensor], Written]
    activations: str = "none"
    beside: dict[str, Any] | None = None  # hf_quant_config.json


# ---------------------------------------------------------------- decoding, slowly


def fp4(codes: torch.Tensor) -> torch.Tensor:
    """Bytes [n, k/2] -> values [n, k], the low nibble first."""
    nibbles = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).long()
    return E2M1[nibbles & 7] * (1 - 2 * (nibbles >> 3)).float()


def to_fp4(x: torch.Tensor) -> torch.Tensor:
    """Values of up to 6 [n, k] -> bytes [n, k/2] of nearest codes."""
    codes = (x.abs()[..., None] - E2M1).abs().argmin(-1) + 8 * (x < 0)
    return (codes[:, 0::2] + 16 * codes[:, 1::2]).to(torch.uint8)


def words(codes: torch.Tensor, order: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)) -> torch.Tensor:
    """Codes [..., m] of 0..15 -> int32 [..., m/8]: nibble i of a word is its column order[i]."""
    eights = codes.long().unflatten(-1, (-1, 8))
    packed = sum(eights[..., column] << (4 * i) for i, column in enumerate(order))
    assert isinstance(packed, torch.Tensor)
    return (((packed + 2**31) % 2**32) - 2**31).to(torch.int32)


# ---------------------------------------------------------------- compressed-tensors


def qparams(w: torch.Tensor, scheme: QuantizationScheme) -> Tensors:
    """The library's scales and zero points for a weight, by its smallest and largest values."""
    args, state = scheme.weights, {"weight": w}
    assert args is not None
    if args.strategy == "tensor":
        low, high = w.min().reshape(1), w.max().reshape(1)
    elif args.strategy == "channel":
        low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    elif args.strategy == "block":
        n, k = -(-w.shape[0] // 128), -(-w.shape[1] // 128)
        padding = (0, 128 * k - w.shape[1], 0, 128 * n - w.shape[0])
        tiles = torch.nn.functional.pad(w, padding).reshape(n, 128, k, 128)
        low, high = tiles.amin((1, 3)), tiles.amax((1, 3))
    else:
        groups = w.unflatten(-1, (-1, args.group_size))
        low, high = groups.amin(-1), groups.amax(-1)
    options = {}
    if args.strategy == "tensor_group":
        state["weight_global_scale"] = generate_gparam(w.min(), w.max())
        options["global_scale"] = state["weight_global_scale"]
    scale, zero = calculate_qparams(low, high, args, **options)
    state |= {"weight_scale": scale, "weight_zero_point": zero}
    inputs = scheme.input_activations
    if inputs is not None and inputs.dynamic == "local":
        state["input_global_scale"] = torch.tensor([350.0])
    if inputs is not None and inputs.dynamic is False:
        state["input_scale"] = torch.tensor([0.01])
    return state


def compressed(format: str, scheme: QuantizationScheme) -> Callable[[torch.Tensor], Written]:
    """The library's tensors for one weight; their meaning from their bytes."""

    def write(w: torch.Tensor) -> Written:
        state = qparams(w, scheme)
        given = state.pop("input_scale", None)
        writer = BaseCompressor.get_value_from_registry(format)
        out = {k: v.contiguous() for k, v in writer.compress(state, scheme).items()}
        if given is not None:
            out["input_scale"] = given
        n, k = w.shape
        if format == "float-quantized" or format == "naive-quantized":
            scale = out["weight_scale"].float()
            if scheme.weights is not None and scheme.weights.strategy == "block":
                scale = scale.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
            return out, out["weight"].float() * scale
        if format == "nvfp4-pack-quantized":
            scale = out["weight_scale"].float().repeat_interleave(16, 1)
            return out, fp4(out["weight_packed"]) * scale / out["weight_global_scale"]
        if format == "mxfp4-pack-quantized":
            exponents = out["weight_scale"].float().repeat_interleave(32, 1) - 127
            return out, fp4(out["weight_packed"]) * torch.exp2(exponents)
        return out, writer.decompress(out, scheme)["weight"]

    return write


def _ct(
    name: str, preset: str, format: str, kind: str, activations: str = "none", **weights: Any
) -> Dialect:
    scheme = preset_name_to_scheme(preset, ["Linear"])
    if weights:
        assert scheme.weights is not None
        args = type(scheme.weights)(**(scheme.weights.model_dump() | weights))
        scheme = scheme.model_copy(update={"weights": args})
    config = QuantizationConfig(
        config_groups={"group_0": scheme.model_copy(update={"format": format})},
        ignore=["lm_head"],
        format=format,
        quantization_status="compressed",
    )
    fields = json.loads(config.model_dump_json())
    return Dialect(name, kind, fields, compressed(format, scheme), activations)


# ---------------------------------------------------------------- ModelOpt


def modelopt_nvfp4(w: torch.Tensor) -> Written:
    s2 = w.abs().max() / 2688
    scales = (w.abs().unflatten(-1, (-1, 16)).amax(-1) / 6 / s2).clamp(2**-9, 448).to(E4M3)
    spread = scales.float().repeat_interleave(16, 1)
    codes = to_fp4((w / s2 / spread).clamp(-6, 6))
    parts = {"weight": codes, "weight_scale": scales, "weight_scale_2": s2}
    return parts | {"input_scale": torch.tensor(0.004)}, fp4(codes) * spread * s2


def modelopt_w4a16(w: torch.Tensor) -> Written:
    parts, value = modelopt_nvfp4(w)
    del parts["input_scale"]
    return parts, value


def fp8_tensor(w: torch.Tensor) -> Written:
    scale = w.abs().max() / 448
    values = (w / scale).to(E4M3)
    parts = {"weight": values, "weight_scale": scale, "input_scale": torch.tensor(0.02)}
    return parts, values.float() * scale


def fp8_channel(w: torch.Tensor) -> Written:
    scale = w.abs().amax(1) / 448
    values = (w / scale[:, None]).to(E4M3)
    return {"weight": values, "weight_scale": scale}, values.float() * scale[:, None]


def _fp8_tiles(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, k = w.shape
    padded = torch.nn.functional.pad(w, (0, -k % 128, 0, -n % 128))
    tiles = padded.reshape(padded.shape[0] // 128, 128, padded.shape[1] // 128, 128)
    scale = tiles.abs().amax((1, 3)) / 448
    spread = scale.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
    values = (w / spread).to(E4M3)
    return values, scale, values.float() * spread


def modelopt_block(w: torch.Tensor) -> Written:
    values, scale, value = _fp8_tiles(w)
    return {"weight": values, "weight_scale": scale[:, None, :, None]}, value


def deepseek(w: torch.Tensor) -> Written:
    values, scale, value = _fp8_tiles(w)
    return {"weight": values, "weight_scale_inv": scale}, value


# ---------------------------------------------------------------- AWQ, GPTQ


def _int4(w: torch.Tensor, group: int, symmetric: bool = False) -> tuple[torch.Tensor, ...]:
    """codes [n, k], fp16 scales and zero points [n, k/group], the value."""
    groups = w.unflatten(-1, (-1, group))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    if symmetric:
        scales = (groups.abs().amax(-1) / 7).half()
        zeros = torch.full_like(scales, 8)
    else:
        scales = ((high - low) / 15).half()
        zeros = (-low / scales.float()).round().clamp(0, 15)
    s, z = (t.float().repeat_interleave(group, 1) for t in (scales, zeros))
    codes = ((w / s).round() + z).clamp(0, 15)
    return codes, scales, zeros.float(), (codes - z) * s


def awq(w: torch.Tensor) -> Written:
    codes, scales, zeros, value = _int4(w, 64)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    parts = {"qweight": words(codes.T, order), "qzeros": words(zeros.T, order)}
    return parts | {"scales": scales.T.contiguous()}, value


def gptq(*, group: int = 64, offset: int = 1, symmetric: bool = False, act_order: bool = False):  # type: ignore[no-untyped-def]
    """offset: what version 1 subtracts from zero points."""

    def write(w: torch.Tensor) -> Written:
        n, k = w.shape
        size = k if group < 0 else group
        order = torch.arange(k)
        if act_order:  # columns by falling size, quantized in that order
            order = w.square().sum(0).argsort(descending=True)
        codes, scales, zeros, value = _int4(w[:, order], size, symmetric)
        back = order.argsort()
        parts = {
            "qweight": words(codes[:, back]).T.contiguous(),  # [n, k/8] words of rows, turned
            "qzeros": words((zeros.T - offset) % 16),
            "scales": scales.T.contiguous(),
            "g_idx": (back // size).int(),
        }
        return parts, value[:, back]

    return write


# ---------------------------------------------------------------- gpt-oss


def mxfp4(w: torch.Tensor) -> Written:
    """Blocks [n, k/32, 16] and scales [n, k/32]."""
    groups = w.unflatten(-1, (-1, 32))
    exponents = (groups.abs().amax(-1) / 6).log2().ceil()
    spread = torch.exp2(exponents).repeat_interleave(32, 1)
    codes = to_fp4(w / spread)
    parts = {"blocks": codes.unflatten(-1, (-1, 16)), "scales": (exponents + 127).to(torch.uint8)}
    return parts, fp4(codes) * spread


def stacked_experts(plain: Tensors) -> tuple[Tensors, Tensors]:
    """Experts of a plain checkpoint in gpt-oss's way, gate and up in turns; and their values."""
    stored, values, layers = {}, dict(plain), {}
    for name in plain:
        layer, expert, part = name.partition(".experts.")
        if expert:
            layers.setdefault(f"{layer}.experts", set()).add(int(part.split(".")[0]))
        else:
            stored[name] = plain[name]
    for layer, experts in layers.items():
        parts: dict[str, list[torch.Tensor]] = {}
        for e in sorted(experts):
            gate, up, down = (plain[f"{layer}.{e}.{p}_proj.weight"] for p in ("gate", "up", "down"))
            both = torch.stack((gate, up), 1).flatten(0, 1)  # rows 0, 0, 1, 1, ...
            for stem, w in (("gate_up_proj", both), ("down_proj", down)):
                written, value = mxfp4(w.float())
                for leaf, t in written.items():
                    parts.setdefault(f"{layer}.{stem}_{leaf}", []).append(t)
                if stem == "down_proj":
                    values[f"{layer}.{e}.down_proj.weight"] = value
                else:
                    values[f"{layer}.{e}.gate_proj.weight"] = value[0::2].contiguous()
                    values[f"{layer}.{e}.up_proj.weight"] = value[1::2].contiguous()
        stored |= {name: torch.stack(found) for name, found in parts.items()}
    return stored, values


# ---------------------------------------------------------------- the table


def _modelopt(algorithm: str, **more: Any) -> dict[str, Any]:
    return {"quant_method": "modelopt", "quant_algo": algorithm, "ignore": ["lm_head"], **more}


GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": False}
DIALECTS = (
    _ct("ct-nvfp4", "NVFP4", "nvfp4-pack-quantized", "nvfp4", "nvfp4"),
    _ct("ct-nvfp4a16", "NVFP4A16", "nvfp4-pack-quantized", "nvfp4"),
    _ct("ct-mxfp4a16", "MXFP4A16", "mxfp4-pack-quantized", "mxfp4"),
    _ct("ct-mxfp4", "MXFP4", "mxfp4-pack-quantized", "mxfp4", "mxfp4"),
    _ct("ct-mxfp4-fp8", "MXFP4XFP8", "mxfp4-pack-quantized", "mxfp4", "fp8-group"),
    _ct("ct-fp8-dynamic", "FP8_DYNAMIC", "float-quantized", "fp8-rows", "fp8-token"),
    _ct("ct-fp8-static", "FP8", "float-quantized", "fp8-rows", "fp8-tensor"),
    _ct("ct-fp8-block", "FP8_BLOCK", "float-quantized", "fp8-block", "fp8-group"),
    _ct("ct-w4a16", "W4A16", "pack-quantized", "int4"),
    _ct("ct-w4a16-asym", "W4A16_ASYM", "pack-quantized", "int4"),
    _ct("ct-w4a16-channel", "W4A16", "pack-quantized", "int4", strategy="channel", group_size=None),
    _ct("ct-w4a16-asym-channel", "W4A16_ASYM", "pack-quantized", "int4", strategy="channel",
        group_size=None),
    Dialect("modelopt-nvfp4", "nvfp4", _modelopt("NVFP4", group_size=16), modelopt_nvfp4, "nvfp4"),
    Dialect("modelopt-file", "nvfp4", {}, modelopt_nvfp4, "nvfp4", beside={
        "producer": {"name": "modelopt", "version": "0.47.0"},
        "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16,
                         "exclude_modules": ["lm_head"]}}),
    Dialect("modelopt-w4a16", "nvfp4", _modelopt("W4A16_NVFP4"), modelopt_w4a16),
    Dialect("modelopt-fp8", "fp8-rows", _modelopt("FP8"), fp8_tensor, "fp8-tensor"),
    Dialect("modelopt-fp8-channel", "fp8-rows", _modelopt("FP8_PER_CHANNEL_PER_TOKEN"),
            fp8_channel, "fp8-token"),
    Dialect("modelopt-fp8-block", "fp8-block", _modelopt("FP8_PB_WO"), modelopt_block),
    Dialect("deepseek", "fp8-block", {"quant_method": "fp8", "weight_block_size": [128, 128]},
            deepseek, "fp8-group"),
    Dialect("fp8-static", "fp8-rows", {"quant_method": "fp8", "activation_scheme": "static"},
            fp8_tensor, "fp8-tensor"),
    Dialect("awq", "int4", {"quant_method": "awq", "bits": 4, "group_size": 64,
                            "zero_point": True, "version": "gemm"}, awq),
    Dialect("gptq", "int4", GPTQ, gptq()),
    Dialect("gptq-v2", "int4", GPTQ | {"checkpoint_format": "gptq_v2"}, gptq(offset=0)),
    Dialect("gptq-sym", "int4", GPTQ | {"sym": True}, gptq(symmetric=True)),
    Dialect("gptq-rows", "int4", GPTQ | {"group_size": -1}, gptq(group=-1)),
    Dialect("gptq-act-order", "int4", GPTQ | {"desc_act": True}, gptq(act_order=True)),
)  # fmt: skip
GPT_OSS = Dialect("gpt-oss", "mxfp4", {"quant_method": "mxfp4"}, mxfp4)
BY_NAME = {dialect.name: dialect for dialect in DIALECTS}


# ---------------------------------------------------------------- whole models


def quantized(name: str) -> bool:
    """Whether a tensor of a plain checkpoint is a Linear's weight that gets quantized."""
    ends = ("_proj.weight", "_proj_with_mqa.weight")
    return name.endswith(ends) and not any(part in name for part in KEPT)


def write_config(source: Path, folder: Path, dialect: Dialect | None) -> None:
    """The plain model's files but its weights, with the dialect's settings."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.json"):
        shutil.copy(file, folder)
    if dialect is None:
        return
    config = json.loads((source / "config.json").read_text())
    if dialect.config:
        config["quantization_config"] = dialect.config
    (folder / "config.json").write_text(json.dumps(config))
    if dialect.beside is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(dialect.beside))


def write_model(source: Path, folder: Path, dialect: Dialect) -> tuple[Path, Path]:
    """The plain model of `source` in the dialect, and with the values that it then has."""
    stored, values = folder / "stored", folder / "values"
    write_config(source, stored, dialect)
    write_config(source, values, None)
    source_tensors = load_file(source / "model.safetensors")
    tensors: Tensors = {}
    plain: Tensors = {}
    if dialect is GPT_OSS:
        tensors, plain = stacked_experts(source_tensors)
        source_tensors = {}
    for name, tensor in source_tensors.items():
        if not quantized(name):
            tensors[name] = plain[name] = tensor
            continue
        parts, plain[name] = dialect.write(tensor.float())
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{leaf}": part for leaf, part in parts.items()}
    tensors = {name: t.contiguous() for name, t in tensors.items()}
    save_file(tensors, stored / "model.safetensors", {"format": "pt"})
    plain = {name: t.contiguous() for name, t in plain.items()}
    save_file(plain, values / "model.safetensors", {"format": "pt"})
    return stored, values
