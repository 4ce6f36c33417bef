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
from sparkwell.models.weights import CheckpointWeights, Progress, Recorder, Weights

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
    widen_fp8: bool | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a checkpoint folder.

    dtype: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, whose operations compute
    in fp32 anyway, and the checkpoint's own elsewhere.
    latent_norm_eps: eps of MLA's latent norms; None takes rms_norm_eps for GLM (as vLLM does) and
    1e-6 for DeepSeek.  Transformers takes 1e-6 for both.
    widen_fp8: FP8 weights become `dtype` while they are loaded, with a warning; None: on a GPU,
    whose products are of float weights so far.
    progress: called with bytes done and bytes in all.

    Raises BadCheckpoint before any data is read where names, shapes or the scheme do not fit.
    """
    checkpoint = Checkpoint.open(folder)
    config = parse_config(
        checkpoint.config, file=folder / "config.json", latent_norm_eps=latent_norm_eps
    )
    held = survey(checkpoint)
    check_tensors(checkpoint, expected_tensors(config), ignored=_ignored(config))
    kind = _dtype(dtype, checkpoint, device)
    if widen_fp8 is None:
        widen_fp8 = torch.device(device).type == "cuda"
    if widen_fp8 and held.weights:
        log.warning("%s: FP8 weights become %s, which takes more memory", folder, kind)
    weights = CheckpointWeights(
        checkpoint, dtype=kind, device=device, widen_fp8=widen_fp8, progress=progress
    )
    return build(config, weights)


def _dtype(name: str, checkpoint: Checkpoint, device: str | torch.device) -> torch.dtype:
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise BadInput(f"dtype is {name!r}; want one of auto, {', '.join(DTYPES)}")
    if torch.device(device).type == "cpu":
        return torch.float32
    stored = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    return DTYPES.get(str(stored), torch.bfloat16)


def _ignored(config: Config) -> Callable[[str], bool]:
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
