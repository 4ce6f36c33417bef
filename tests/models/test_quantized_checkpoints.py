"""Models from quantized checkpoints of every dialect: the logits of the dequantized weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import BY_NAME as FAMILIES_BY_NAME
from families import VOCAB, checkpoint, oracle_model
from oracle import Feeder
from sparkwell.engine.llm import LLM
from sparkwell.engine.request import SamplingParams
from sparkwell.models.load import load_model
from sparkwell.testing import assert_matches, cosine_gap

pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationConfig,
    apply_quantization_config,
    preset_name_to_scheme,
)

from checkpoints.dialects import BY_NAME, DIALECTS, GPT_OSS, Dialect, qparams, write_model

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


def saved_by_the_library(preset: str, folder: Path) -> tuple[Path, Path]:
    """A model that compressed-tensors itself quantizes, saves and reads back."""
    model = oracle_model(FAMILIES_BY_NAME["llama"])
    config = QuantizationConfig(
        config_groups={"group_0": preset_name_to_scheme(preset, ["Linear"])}, ignore=["lm_head"]
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if (scheme := getattr(module, "quantization_scheme", None)) is not None:
            for name, value in qparams(module.weight.data, scheme).items():
                if hasattr(module, name) and name != "weight":
                    getattr(module, name).data = value.to(getattr(module, name).dtype)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder / "stored")
    compressor.update_config(str(folder / "stored"))
    compressor.decompress_model(model)
    plain = {name: t for name, t in model.state_dict().items()
             if name.endswith((".weight", ".bias"))}  # fmt: skip
    (folder / "values").mkdir()
    (folder / "values" / "config.json").write_text(
        (checkpoint("llama") / "config.json").read_text()
    )
    save_file({n: t.float().contiguous() for n, t in plain.items()},
              folder / "values" / "model.safetensors")  # fmt: skip
    return folder / "stored", folder / "values"


@pytest.mark.parametrize("preset", ["NVFP4", "FP8_DYNAMIC", "FP8", "W4A16_ASYM"])
def test_a_model_saved_by_the_library(preset: str, tmp_path: Path) -> None:
    stored, values = saved_by_the_library(preset, tmp_path)
    got = Feeder(load_model(stored)).prefill(ids(40))
    want = Feeder(load_model(values)).prefill(ids(40))
    limit = 1e-4 if preset == "NVFP4" else 1e-9  # the library decompresses NVFP4 to bfloat16
    assert cosine_gap(got, want) < limit
    original = Feeder(load_model(checkpoint("llama"))).prefill(ids(40))
    assert cosine_gap(got, want) < 0.02 * cosine_gap(got, original)


MOE = ("ct-nvfp4", "modelopt-nvfp4", "ct-mxfp4a16", "ct-fp8-dynamic", "awq", "gptq-act-order")


@pytest.mark.parametrize("name", MOE)
@pytest.mark.parametrize("family", ["qwen3-moe", "glm-5"])
def test_experts_and_latent_attention(family: str, name: str, tmp_path: Path) -> None:
    compare(family, BY_NAME[name], tmp_path)


def test_stacked_experts(tmp_path: Path) -> None:
    """As gpt-oss has them, in a family that is implemented."""
    compare("qwen3-moe", GPT_OSS, tmp_path)


def test_scales_of_a_quantized_cache_are_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored, _ = write_model(checkpoint("llama"), tmp_path, BY_NAME["modelopt-file"])
    load_model(stored)
    assert "KV cache" not in caplog.text
    file = stored / "model.safetensors"
    scales = {f"model.layers.{i}.self_attn.k_proj.k_scale": torch.ones(()) for i in range(4)}
    save_file(load_file(file) | scales, file, {"format": "pt"})
    load_model(stored)
    assert "4 scales of a quantized KV cache are not used" in caplog.text


@pytest.mark.parametrize("name", ["ct-nvfp4", "awq"])
def test_text_from_a_quantized_checkpoint(name: str, tmp_path: Path) -> None:
    stored, values = write_model(checkpoint("qwen3-moe"), tmp_path, BY_NAME[name])
    params = SamplingParams(max_tokens=12, temperature=0.0)
    tokens = []
    for folder in (stored, values):
        with LLM(folder, num_pages=16, max_context=64) as llm:
            tokens.append(llm.generate("To be, or not", params)[0].token_ids)
    assert tokens[0] == tokens[1] and len(tokens[0]) == 12
