"""Loading: exactly the expected tensors, DeepSeek's FP8 end to end, what may be left over."""

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import FAMILIES, VOCAB, checkpoint
from oracle import Feeder, load_ours
from sparkwell.checkpoints.config import parse_config
from sparkwell.checkpoints.locate import locate
from sparkwell.errors import BadCheckpoint, BadInput
from sparkwell.formats.fp8 import Fp8Block, quantize_fp8_block
from sparkwell.formats.weights import QuantizedTensor
from sparkwell.models.deepseek import DeepseekModel
from sparkwell.models.layers import Moe
from sparkwell.models.load import expected_tensors, kept_formats, load_model
from sparkwell.models.weights import ANY
from sparkwell.ops import served
from sparkwell.testing import assert_matches, cosine_gap

pytestmark = pytest.mark.xdist_group("oracle")
# What DeepSeek and GLM leave in BF16 or FP32.
KEPT = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "weights_proj", "e_score")


def ids(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(2, VOCAB, (length,), generator=generator).tolist()


def write_fp8(source: Path, folder: Path) -> tuple[Path, Path]:
    """A checkpoint with FP8 weights in place of its own, and the same values dequantized."""
    fp8, plain = folder / "fp8", folder / "plain"
    for out in (fp8, plain):
        out.mkdir()
        for file in source.glob("*.json"):
            shutil.copy(file, out)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
    }
    (fp8 / "config.json").write_text(json.dumps(config))
    stored, dequantized = {}, {}
    for key, tensor in load_file(source / "model.safetensors").items():
        if any(part in key for part in KEPT) or tensor.ndim != 2:
            stored[key] = dequantized[key] = tensor
            continue
        block = quantize_fp8_block(tensor)
        stored[key], stored[f"{key}_scale_inv"] = block.values, block.scales
        dequantized[key] = block.dequantize()
    save_file(stored, fp8 / "model.safetensors", {"format": "pt"})
    save_file(dequantized, plain / "model.safetensors", {"format": "pt"})
    return fp8, plain


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3.2", "glm-5"])
def test_fp8_checkpoint_equals_its_dequantized_values(name: str, tmp_path: Path) -> None:
    fp8, plain = (load_model(folder) for folder in write_fp8(checkpoint(name), tmp_path))
    assert isinstance(fp8, DeepseekModel)
    assert isinstance(fp8.layers[0].attention.o, Fp8Block)
    moe = fp8.layers[1].mlp
    assert isinstance(moe, Moe) and isinstance(moe.gate_up, Fp8Block)
    got, want = Feeder(fp8).prefill(ids(100)), Feeder(plain).prefill(ids(100))
    assert_matches(got, want, "logits", label=name)
    original = Feeder(load_ours(name)).prefill(ids(100))
    assert 1e-5 < cosine_gap(got, original) < 0.1, "FP8 must show, and not much"


def test_fp8_weights_are_widened_where_no_kernel_multiplies_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, plain = write_fp8(checkpoint("deepseek-v3.2"), tmp_path)
    wide = load_model(folder, dtype="float32", widen=True)
    assert "Fp8Block weights become float32: no kernel multiplies them as they are" in caplog.text
    assert isinstance(wide, DeepseekModel)
    assert isinstance(wide.layers[0].attention.o, torch.Tensor)
    moe = wide.layers[1].mlp
    assert isinstance(moe, Moe) and isinstance(moe.gate_up, torch.Tensor)
    got, want = Feeder(wide).prefill(ids(100)), Feeder(load_model(plain)).prefill(ids(100))
    assert_matches(got, want, "logits")
    caplog.clear()
    load_model(plain, widen=True)
    assert not caplog.text, "nothing is widened there"


def test_which_formats_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU takes all; a GPU those that its kernels multiply, unless the caller says otherwise."""
    monkeypatch.setattr(served, "LINEAR", frozenset({"Nvfp4"}))
    monkeypatch.setattr(served, "EXPERTS", frozenset({"Mxfp4"}))
    kernels = {"linear": frozenset({"Nvfp4"}), "experts": frozenset({"Mxfp4"})}
    nothing = {"linear": frozenset(), "experts": frozenset()}
    assert kept_formats("cuda:1", None) == kernels
    assert kept_formats("cpu", None) == kept_formats("cuda", False)
    assert kept_formats("cuda", False) == {"linear": ANY, "experts": ANY}
    assert kept_formats("cpu", True) == kept_formats("cuda", True) == nothing
    assert {kind.__name__ for kind in get_args(QuantizedTensor)} == ANY
    assert {*served.LINEAR, *served.EXPERTS} <= ANY


def test_experts_narrower_than_a_block(tmp_path: Path) -> None:
    """64 rows of gate above 64 of up: their scales belong to different blocks."""
    fp8, plain = (load_model(folder) for folder in write_fp8(locate("bard"), tmp_path))
    got, want = Feeder(fp8).prefill(ids(100)), Feeder(plain).prefill(ids(100))
    assert_matches(got, want, "logits")


def test_glm_heads_end_inside_fp8_blocks(tmp_path: Path) -> None:
    """448 rows a head are 3.5 blocks: sliced by head before dequantizing, scales would shift."""
    fp8, plain = (load_model(folder) for folder in write_fp8(checkpoint("glm-5"), tmp_path))
    assert isinstance(fp8, DeepseekModel) and isinstance(plain, DeepseekModel)
    for a, b in zip(fp8.layers, plain.layers, strict=True):
        assert a.attention.w_uk.shape == (16, 192, 512)
        assert torch.equal(a.attention.w_uk, b.attention.w_uk)
        assert torch.equal(a.attention.w_uv, b.attention.w_uv)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_expected_tensors_are_those_transformers_writes(family: object) -> None:
    folder = checkpoint(family.name)  # type: ignore[attr-defined]
    config = parse_config(json.loads((folder / "config.json").read_text()))
    expected = expected_tensors(config)
    written = {k: tuple(t.shape) for k, t in load_file(folder / "model.safetensors").items()}
    assert expected == written


def test_extra_prediction_layer_is_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "mtp"
    shutil.copytree(checkpoint("glm-5"), folder)
    tensors = load_file(folder / "model.safetensors")
    extra = {f"model.layers.4.{part}.weight": torch.ones(3) for part in ("enorm", "eh_proj")}
    save_file(tensors | extra, folder / "model.safetensors", {"format": "pt"})
    assert len(load_model(folder).layers) == 4
    wrong = {"model.layers.2.enorm.weight": torch.ones(3)}
    save_file(tensors | wrong, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"model\.layers\.2\.enorm"):
        load_model(folder)


def test_progress_reaches_the_end() -> None:
    calls: list[tuple[int, int]] = []
    load_model(checkpoint("qwen3"), progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls) and calls[-1][0] == calls[-1][1] > 0


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(BadInput, match="dtype is 'fp7'; want one of auto, float32, bfloat16"):
        load_model(checkpoint("qwen3"), dtype="fp7")


def test_auto_dtype_is_fp32_on_a_cpu() -> None:
    assert load_model(checkpoint("qwen3")).embed.dtype == torch.float32
    assert load_model(checkpoint("qwen3"), dtype="bfloat16").embed.dtype == torch.bfloat16
