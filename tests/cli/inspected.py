"""Tiny checkpoints of every dialect for `inspect`, whole models that load in no time."""

import json
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner, Result

from checkpoints.checkpoint_files import write_file
from checkpoints.dialects import BY_NAME, GPT_OSS, Dialect, quantized, stacked_experts
from sparkwell.checkpoints.config import parse_config
from sparkwell.cli import app
from sparkwell.models.load import expected_tensors

Tensors = dict[str, torch.Tensor]
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
}
MOE: dict[str, Any] = LLAMA | {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "norm_topk_prob": True,
    "rope_theta": 1e6,
    "head_dim": 64,
}
Q = "model.layers.1.self_attn.q_proj"
SCALES = "scales are not numbers of at least 0"
CONTRADICTION = "config and tensors contradict each other"


def plain_tensors(config: dict[str, Any]) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    shapes = expected_tensors(parse_config(config))
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def tensors_of(dialect: Dialect, config: dict[str, Any]) -> Tensors:
    plain = plain_tensors(config)
    if dialect is GPT_OSS:
        return stacked_experts(plain)[0]
    out: Tensors = {}
    for name, tensor in plain.items():
        if quantized(name):
            parts, _ = dialect.write(tensor)
            module = name.removesuffix(".weight")
            out |= {f"{module}.{leaf}": part.contiguous() for leaf, part in parts.items()}
        else:
            out[name] = tensor
    return out


def write(
    folder: Path, dialect: Dialect, config: dict[str, Any], tensors: Tensors | None = None
) -> Path:
    folder.mkdir(exist_ok=True)
    fields = {"quantization_config": dialect.config} if dialect.config else {}
    (folder / "config.json").write_text(json.dumps(config | fields))
    if dialect.beside:
        (folder / "hf_quant_config.json").write_text(json.dumps(dialect.beside))
    if tensors is None:
        tensors = tensors_of(dialect, config)
    write_file(folder / "model.safetensors", tensors)
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)], catch_exceptions=False)


def looked(folder: Path, code: int, *arguments: str) -> dict[str, Any]:
    result = run(folder, "--json", *arguments)
    assert result.exit_code == code, result.stdout + result.stderr
    return json.loads(result.stdout)


def problems(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [finding for finding in report["findings"] if finding["severity"] == "problem"]


def zeros(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.zeros(shape).to(dtype)


def configured(folder: Path, name: str, **fields: Any) -> Path:
    dialect = BY_NAME[name]
    said = Dialect(name, "", dialect.config | fields, dialect.write)
    return write(folder, said, LLAMA, tensors_of(dialect, LLAMA))
