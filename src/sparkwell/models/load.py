"""A model folder, Hub id or packaged name becomes a model with its weights in place."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import torch

from sparkwell.checkpoints.config import DeepseekConfig, LlamaConfig, parse_config
from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.checkpoints.schemes import check_tensors
from sparkwell.checkpoints.survey import survey
from sparkwell.errors import BadInput
from sparkwell.models.deepseek import DeepseekModel
from sparkwell.models.llama import LlamaModel
from sparkwell.models.weights import ANY, CheckpointWeights, Progress, Recorder, Weights
from sparkwell.ops import served

log = logging.getLogger(__name__)

Config = DeepseekConfig | LlamaConfig
Model = DeepseekModel | LlamaModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build(config: Config, weights: Weights) -> Model:
    """The model of this config's family, asking `weights` for every tensor it needs."""
    if isinstance(config, DeepseekConfig):
        return DeepseekModel(config, weights)
    return LlamaModel(config, weights)


def expected_tensors(config: Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor a checkpoint of this config must hold, scales aside."""
    recorder = Recorder()
    build(config, recorder)
    return recorder.expected


def load_model(
    folder: Path,
    *,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
    latent_norm_eps: float | None = None,
    widen: bool | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a checkpoint folder.

    dtype: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, whose operations compute
    in fp32 anyway, and the checkpoint's own elsewhere.
    latent_norm_eps: eps of MLA's latent norms; None takes rms_norm_eps for GLM (as vLLM does) and
    1e-6 for DeepSeek.  Transformers takes 1e-6 for both.
    widen: quantized weights become `dtype` while they are loaded, with a warning; None: on a GPU
    those of formats that no kernel multiplies as they are, nothing on a CPU.
    progress: called with bytes done and bytes in all.

    Raises BadCheckpoint before any data is read where names, shapes or the scheme do not fit.
    """
    checkpoint = Checkpoint.open(folder)
    config = parse_config(
        checkpoint.config, file=folder / "config.json", latent_norm_eps=latent_norm_eps
    )
    check_tensors(checkpoint, expected_tensors(config), ignored=ignored_tensors(config))
    kind = _dtype(dtype, checkpoint, device)
    weights = CheckpointWeights(
        checkpoint, dtype=kind, device=device, progress=progress, **kept_formats(device, widen)
    )
    model = build(config, weights)
    if unused := survey(checkpoint).cache_scales:
        log.warning("%s: %d scales of a quantized KV cache are not used", folder, len(unused))
    for remark, count in weights.remarks.items():
        log.warning("%s: %d %s", folder, count, remark)
    for how, count in weights.arithmetic.items():
        log.info("%s: %d %s", folder, count, how)
    return model


def kept_formats(device: str | torch.device, widen: bool | None) -> dict[str, frozenset[str]]:
    """The formats that stay as they are stored, in layers and in stacks of experts."""
    if widen is None and torch.device(device).type == "cpu":
        widen = False
    if widen is None:
        return {"linear": served.LINEAR, "experts": served.EXPERTS}
    kinds: frozenset[str] = frozenset() if widen else ANY
    return {"linear": kinds, "experts": kinds}


def _dtype(name: str, checkpoint: Checkpoint, device: str | torch.device) -> torch.dtype:
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise BadInput(f"dtype is {name!r}; want one of auto, {', '.join(DTYPES)}")
    if torch.device(device).type == "cpu":
        return torch.float32
    stored = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    return DTYPES.get(str(stored), torch.bfloat16)


def ignored_tensors(config: Config) -> Callable[[str], bool]:
    """Tensors a checkpoint may hold although the backbone does not use them."""
    layers = config.num_layers

    def ignored(name: str) -> bool:
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if layer and int(layer[1]) >= layers:
            return True  # the multi-token-prediction layer
        if name == "lm_head.weight" and config.tie_word_embeddings:
            return True  # some writers store the tied head a second time
        return name.endswith("rotary_emb.inv_freq")

    return ignored
