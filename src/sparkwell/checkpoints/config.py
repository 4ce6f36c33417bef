"""config.json of a Hugging Face checkpoint becomes a frozen, checked description of the model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparkwell.checkpoints.architectures import (
    DeepseekConfig,
    IndexerConfig,
    LlamaConfig,
    MoeConfig,
    RopeConfig,
    RopeKind,
)
from sparkwell.checkpoints.families import parse_deepseek, parse_llama
from sparkwell.checkpoints.keys import Keys
from sparkwell.errors import BadCheckpoint

__all__ = [
    "FAMILIES",
    "DeepseekConfig",
    "IndexerConfig",
    "LlamaConfig",
    "MoeConfig",
    "RopeConfig",
    "RopeKind",
    "parse_config",
    "read_config",
    "read_json_object",
]

FAMILIES: dict[str, Callable[[Keys], DeepseekConfig | LlamaConfig]] = {
    "deepseek_v2": parse_deepseek,
    "deepseek_v3": parse_deepseek,
    "deepseek_v32": parse_deepseek,
    "glm4_moe_lite": parse_deepseek,
    "glm_moe_dsa": parse_deepseek,
    "llama": parse_llama,
    "qwen2": parse_llama,
    "qwen3": parse_llama,
    "qwen3_moe": parse_llama,
}
NOT_YET = {  # architectures whose names we know and whose mathematics is not implemented
    "deepseek_v4": "hyper-connections, compressed attention and hash routing",
    "glm5_next": "hyper-connections, linear attention and the pooled indexer",
}


def parse_config(
    config: dict[str, Any], *, file: Path | str | None = None, latent_norm_eps: float | None = None
) -> DeepseekConfig | LlamaConfig:
    """The model that a config.json describes, in its old spelling or in Transformers 5's.

    config: the file's contents; `file` is only named in errors.
    latent_norm_eps: replaces the epsilon of MLA's two latent norms.  GLM's published
        implementations disagree: Transformers uses 1e-6, vLLM the config's rms_norm_eps, as here.

    Raises BadCheckpoint for an architecture that is not known, for a key that is missing, of the
    wrong type or in contradiction to another, and for any feature that would need other
    mathematics than is implemented here.
    """
    keys = Keys(config, file)
    name = config.get("model_type")
    if not isinstance(name, str):
        raise keys.wrong("model_type", "one of " + ", ".join(FAMILIES))
    if name not in FAMILIES:
        why = f"; {name} is known but not supported yet: {NOT_YET[name]}" if name in NOT_YET else ""
        raise BadCheckpoint(
            f"no model of architecture {name!r} is implemented{why}",
            file=keys.file,
            came=f"model_type = {name!r}",
            wanted="one of " + ", ".join(FAMILIES),
            do="choose a model of one of these architectures",
        )
    parsed = FAMILIES[name](keys)
    if latent_norm_eps is not None and isinstance(parsed, DeepseekConfig):
        return replace(parsed, latent_norm_eps=latent_norm_eps)
    return parsed


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.  Raises BadCheckpoint where it is absent or no JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        listed = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else None
        raise BadCheckpoint(
            "no config.json in the model's folder" if listed is not None else "no such folder",
            file=path,
            came=f"{len(listed)} other files ({', '.join(listed[:4])})" if listed else "nothing",
            wanted="a folder with config.json, *.safetensors and tokenizer files",
            do="give the folder that holds config.json, or a Hub id owner/name",
        )
    return read_json_object(path)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.  Raises BadCheckpoint where it holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(
            f"{path.name} is not valid JSON",
            file=path,
            came=f"{path.stat().st_size} bytes that do not parse: {error}",
            wanted="one JSON object {...} in UTF-8",
            do="download the file again; it may be cut off, or an error page saved in its place",
        ) from error
    if not isinstance(value, dict):
        raise BadCheckpoint(
            f"{path.name} is not a JSON object",
            file=path,
            came=f"a JSON {type(value).__name__}",
            wanted="one JSON object {...}",
            do="download the file again",
        )
    return value
