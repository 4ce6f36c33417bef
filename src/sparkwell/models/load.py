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
from sparkwell.formats.quantized import Quantized
from sparkwell.models.deepseek import DeepseekModel
from sparkwell.models.llama import LlamaModel
from sparkwell.models.schemes import Scheme, find_scheme
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
    scheme: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a checkpoint folder.

    dtype: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, whose operations compute
    in fp32 anyway, and the checkpoint's own elsewhere.
    latent_norm_eps: eps of MLA's latent norms; None takes rms_norm_eps for GLM (as vLLM does) and
    1e-6 for DeepSeek.  Transformers takes 1e-6 for both.
    widen: quantized weights become `dtype` while they are loaded, with a warning; None: on a GPU
    those of formats that no kernel multiplies as they are, nothing on a CPU.
    scheme: one of `schemes.SCHEMES`, into which plain weights are quantized on the way; None: they
    stay as they are stored.
    progress: called with bytes done and bytes in all.

    Raises BadInput for an unknown scheme, and for one of a checkpoint that is quantized already.
    Raises BadCheckpoint before any data is read where names, shapes or the scheme do not fit.
    """
    checkpoint = Checkpoint.open(folder)
    config = parse_config(
        checkpoint.config, file=folder / "config.json", latent_norm_eps=latent_norm_eps
    )
    check_tensors(checkpoint, expected_tensors(config), ignored=ignored_tensors(config))
    weights = CheckpointWeights(
        checkpoint,
        dtype=_dtype(dtype, checkpoint, device),
        device=device,
        scheme=None if scheme is None else _scheme(scheme, checkpoint),
        progress=progress,
        **kept_formats(device, widen),
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


def _scheme(name: str, checkpoint: Checkpoint) -> Scheme:
    scheme = find_scheme(name)
    if stored := survey(checkpoint).weights:
        one = next(iter(stored.values()))
        raise BadInput(
            f"scheme is {name!r}, but {checkpoint.folder} is quantized already: {len(stored)} "
            f"weights, {one.kind} of {one.dialect} the first; leave the scheme out, or take the "
            "version of the model with plain weights"
        )
    return scheme


def weight_bytes(model: Model) -> int:
    """Bytes that a model's weights take where they lie; views of one another count once."""
    held: dict[int, int] = {}
    waiting: list[object] = [model]
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
        elif isinstance(thing, Quantized):
            waiting += thing.tensors().values()
        elif isinstance(thing, list | tuple):
            waiting += thing
        elif type(thing).__module__.startswith("sparkwell.models."):
            waiting += vars(thing).values()
    return sum(held.values())


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
