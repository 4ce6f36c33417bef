"""Does it fit: bytes of weights, of cached tokens and of what a step needs, on one of the GPUs."""

from dataclasses import dataclass

from sparkwell.checkpoints.architectures import DeepseekConfig
from sparkwell.formats.kv import gqa_record, index_key_record, latent_record
from sparkwell.hardware.gpus import Gpu
from sparkwell.plan.model import Model
from sparkwell.plan.parts import Config
from sparkwell.plan.schemes import Scheme
from sparkwell.plan.share import Share

# What a process cannot have, beside weights and caches.
CONTEXT = 600 << 20  # the driver's context and libraries
FRAGMENTS = 0.05  # of a GPU's own memory: the allocator's losses, the display
HOST_AND_SYSTEM = 12 << 30  # where host and GPU share memory: the system, this process, its pages
SCORES = 256 << 20  # of the indexer, at most (ops.indexer.select)
STEP_TOKENS = 2048  # rows of a step: the engine's max_batch_tokens


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    usable: less what others take.  tokens: that the cache holds.  missing: that it lacks; 0: fits.
    """

    total: int
    usable: int
    weights: int
    step: int
    token: int
    index_token: int
    tokens: int
    missing: int


def cache_dtype(config: Config, asked: str) -> str:
    """ "auto": FP8 for models with an indexer, whose caches are published so; BF16 for others."""
    if asked != "auto":
        return asked
    return "fp8" if isinstance(config, DeepseekConfig) and config.indexer else "bf16"


def token_bytes(config: Config, cache: str, share: Share) -> tuple[int, int]:
    """Bytes that one GPU caches of each token in all layers: all, and the indexer's share."""
    if isinstance(config, DeepseekConfig):
        latent = latent_record(
            cache, kv_lora_rank=config.kv_lora_rank, rope_dim=config.qk_rope_head_dim
        )
        index = 0
        if config.indexer:
            record = index_key_record("fp8", head_dim=config.indexer.head_dim)
            index = sum(config.indexer.full_layers) * record.nbytes
        return config.num_layers * latent.nbytes + index, index
    heads = max(1, config.num_kv_heads // share.gpus)
    return config.num_layers * gqa_record(heads, config.head_dim, cache).nbytes, 0


def usable(gpu: Gpu) -> int:
    """Bytes that weights, caches and steps can have."""
    total = gpu.memory.value
    if gpu.shared_memory:
        return int(total - HOST_AND_SYSTEM)
    return int(total * (1 - FRAGMENTS) - CONTEXT)


def step_bytes(model: Model, share: Share, batch: int, tokens: int) -> int:
    """Buffers of a step of `tokens` rows: activations of a layer, logits, the indexer's scores."""
    c = model.config
    if isinstance(c, DeepseekConfig):
        heads = c.num_heads // share.gpus * (c.kv_lora_rank + c.qk_rope_head_dim) * 3
    else:
        heads = c.num_heads // share.gpus * c.head_dim * 3
    wide = 3 * c.intermediate_size // share.gpus
    if c.moe:  # parts of each expert's result in fp32, and the hidden rows
        wide = max(wide, c.moe.topk * (2 * c.hidden_size + c.moe.width))
    each = 2 * (4 * c.hidden_size + max(heads, wide))
    scores = SCORES if isinstance(c, DeepseekConfig) and c.indexer else 0
    return tokens * each + 8 * batch * c.vocab_size + scores


def memory(
    model: Model,
    scheme: Scheme,
    gpu: Gpu,
    share: Share,
    cache: str,
    context: int,
    batch: int,
    rows: int = STEP_TOKENS,
) -> Memory:
    """What one of the GPUs holds for `batch` requests of `context` tokens; rows: of a step."""
    weights = sum(share.nbytes(part, scheme) for part in model.parts)
    room, step = usable(gpu), step_bytes(model, share, batch, rows)
    token, index = token_bytes(model.config, cache, share)
    free = room - weights - step
    return Memory(
        total=int(gpu.memory.value),
        usable=room,
        weights=weights,
        step=step,
        token=token,
        index_token=index,
        tokens=max(0, free // token),
        missing=max(0, context * batch * token - free),
    )
