"""Model folders written byte by byte, so that a test can write wrong ones."""

import json
from pathlib import Path
from typing import Any

import torch

from sparkwell.errors import BadCheckpoint

NAMES = {  # torch's dtype -> safetensors' name
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.float64: "F64",
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def header_of(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    at = 0
    for name, tensor in tensors.items():
        end = at + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    return entries


def write_raw(path: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    claimed = len(header) if length is None else length
    path.write_bytes(claimed.to_bytes(8, "little") + header + data)


def write_file(
    path: Path, tensors: dict[str, torch.Tensor], header: dict[str, Any] | None = None
) -> None:
    """One safetensors file; `header` replaces the right one."""
    entries = header_of(tensors) if header is None else header
    write_raw(path, json.dumps(entries).encode(), b"".join(raw(t) for t in tensors.values()))


def write_folder(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    config: dict[str, Any] | None = None,
    header: dict[str, Any] | None = None,
) -> Path:
    """A single-file checkpoint."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA if config is None else config))
    write_file(folder / "model.safetensors", tensors, header)
    return folder


def write_shards(
    folder: Path,
    shards: dict[str, dict[str, torch.Tensor]],
    weight_map: dict[str, str] | None = None,
) -> Path:
    """A sharded checkpoint; `weight_map` replaces the right one."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    right = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    for name, tensors in shards.items():
        write_file(folder / name, tensors)
    index = {"weight_map": right if weight_map is None else weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def assert_says(
    error: BadCheckpoint,
    problem: str,
    *,
    file: Path | str | None,
    tensor: str | None = None,
    came: str,
    wanted: str,
    do: str,
) -> None:
    """The whole message: its lines in order, each beginning as stated."""
    starts = [f"checkpoint: {problem}"]
    starts += [f"  file    {file}"] if file is not None else []
    starts += [f"  tensor  {tensor}"] if tensor is not None else []
    starts += [f"  came    {came}", f"  wanted  {wanted}", f"  do      {do}"]
    lines = str(error).splitlines()
    assert len(lines) == len(starts), str(error)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start), f"{line!r} does not begin with {start!r}"
