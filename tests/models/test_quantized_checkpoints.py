"""Models from quantized checkpoints of every dialect: the logits of the dequantized weights."""

from pathlib import Path

import pytest
import torch

from families import VOCAB, checkpoint
from oracle import Feeder
from sparkwell.models.load import load_model
from sparkwell.testing import assert_matches, cosine_gap

pytest.importorskip("compressed_tensors")

from checkpoints.dialects import BY_NAME, DIALECTS, GPT_OSS, Dialect, write_model

pytestmark = pytest.mark.xdist_group("oracle")


def ids(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(2, VOCAB, (length,), generator=generator).tolist()


def compare(family: str, dialect: Dialect, folder: Path) -> None:
    stored, values = write_model(checkpoint(family), folder, dialect)
    got = Feeder(load_model(stored)).prefill(ids(40))
    want = Feeder(load_model(values)).prefill(ids(40))
    assert_matches(got, want, "logits", label=dialect.name)
    original = Feeder(load_model(checkpoint(family))).prefill(ids(40))
    assert 1e-5 < cosine_gap(got, original) < 0.2, "the format must show, and not much"


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_every_dialect_runs(dialect: Dialect, tmp_path: Path) -> None:
    compare("llama", dialect, tmp_path)


MOE = ("ct-nvfp4", "modelopt-nvfp4", "ct-mxfp4a16", "ct-fp8-dynamic", "awq", "gptq-act-order")


@pytest.mark.parametrize("name", MOE)
@pytest.mark.parametrize("family", ["qwen3-moe", "glm-5"])
def test_experts_and_latent_attention(family: str, name: str, tmp_path: Path) -> None:
    compare(family, BY_NAME[name], tmp_path)


def test_stacked_experts(tmp_path: Path) -> None:
    """As gpt-oss has them, in a family that is implemented."""
    compare("qwen3-moe", GPT_OSS, tmp_path)
