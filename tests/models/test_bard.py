"""The model that ships: its size, and its perplexity on held-out text by our own forward."""

import json
import math
from pathlib import Path

import pytest
import torch

from oracle import Feeder
from sparkwell.checkpoints.locate import locate
from sparkwell.engine.tokenizer import Tokenizer
from sparkwell.models.deepseek import DeepseekModel
from sparkwell.models.load import load_model

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ROOT / "examples" / "train_bard"
WINDOW = 512  # tokens; each window stands alone, its first token is not scored


def perplexity(cache: str, windows: int | None = None) -> float:
    folder = locate("bard")
    model = load_model(folder)
    assert isinstance(model, DeepseekModel)
    ids = Tokenizer.load(folder).encode((TRAINING / "heldout_excerpt.txt").read_text())
    count = len(ids) // WINDOW if windows is None else windows
    total = 0.0
    for i in range(count):
        window = ids[i * WINDOW : (i + 1) * WINDOW]
        logits = Feeder(model, dtype=cache, page_size=64, pages=8).prefill(window)[:-1]
        picked = logits.log_softmax(-1).gather(1, torch.tensor(window[1:])[:, None])
        total -= float(picked.sum())
    return math.exp(total / (count * (WINDOW - 1)))


def test_perplexity_is_the_recorded_one() -> None:
    """The record is the training module's own; ours, over paged caches, must agree."""
    record = json.loads((TRAINING / "results.json").read_text())["heldout_excerpt"]
    assert perplexity("fp32") == pytest.approx(record["perplexity"], rel=2e-3)


@pytest.mark.parametrize("cache", ["bf16", "fp8"])
def test_smaller_caches_cost_little(cache: str) -> None:
    exact, rounded = perplexity("fp32", 8), perplexity(cache, 8)
    assert rounded == pytest.approx(exact, rel=5e-3)
    assert rounded != exact, "the smaller cache was not used"


def test_kernel_shaped_and_small() -> None:
    config = load_model(locate("bard")).config
    assert (config.kv_lora_rank, config.qk_rope_head_dim) == (512, 64)  # type: ignore[union-attr]
    index = config.indexer  # type: ignore[union-attr]
    assert index is not None and index.head_dim == 128
    assert index.num_heads >= 32 and index.topk <= 128
    assert config.moe is not None and config.moe.num_experts >= 8
    assert sum(file.stat().st_size for file in locate("bard").iterdir()) <= 12_000_000
