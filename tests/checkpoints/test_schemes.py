"""Quantization schemes: which is recognised, how a weight and its scales become one value."""

from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.checkpoint_files import FP8, LLAMA, write_folder
from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.checkpoints.schemes import check_tensors, read_weight, stored_bytes
from sparkwell.checkpoints.survey import survey
from sparkwell.formats.fp8 import Fp8Block, quantize_fp8_block
from sparkwell.testing import assert_matches

DECLARED = {"quantization_config": FP8}


def fp8_tensors(n: int, k: int, name: str = "w.weight", **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    block = quantize_fp8_block(torch.randn(n, k) * torch.rand(n, 1) * 9, **options)
    return {name: block.values, f"{name}_scale_inv": block.scales}


def opened(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Checkpoint:
    return Checkpoint.open(write_folder(folder, tensors, LLAMA | config))


def test_no_scheme(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {"w.weight": torch.ones(2, 2), "n": torch.ones(2)})
    found = survey(checkpoint)
    assert found.declared.method is None and not found.weights
    assert found.shapes(checkpoint) == {"w.weight": (2, 2), "n": (2,)}
    assert survey(checkpoint) is found  # once for a checkpoint


@pytest.mark.parametrize(
    ("extra", "pow2"),
    [
        ({}, False),
        ({"fmt": "e4m3", "activation_scheme": "dynamic"}, False),
        ({"scale_fmt": "ue8m0"}, True),
        ({"modules_to_not_convert": ["w"]}, False),  # published lists are wrong: not read
    ],
)
def test_fp8_block_scheme(tmp_path: Path, extra: dict[str, Any], pow2: bool) -> None:
    tensors = fp8_tensors(130, 140) | {"norm": torch.ones(2, dtype=torch.bfloat16)}
    checkpoint = opened(tmp_path, tensors, quantization_config=FP8 | extra)
    found = survey(checkpoint)
    stored = found.weights["w.weight"]
    assert (stored.kind, stored.shape, stored.group) == ("fp8-block", (130, 140), 128)
    assert stored.activations == "fp8-group" and found.declared.pow2_scales == pow2
    assert found.shapes(checkpoint) == {"w.weight": (130, 140), "norm": (2,)}
    assert stored_bytes(checkpoint, "w.weight") == 130 * 140 + 4 * 4
    assert stored_bytes(checkpoint, "norm") == 4


@pytest.mark.parametrize("shape", [(128, 128), (448, 512), (576, 256), (1, 1), (129, 300)])
def test_fp8_weight(tmp_path: Path, shape: tuple[int, int]) -> None:
    """448 rows are GLM's key and value rows of one head, 3.5 blocks; 576 are kv_a's, 4.5."""
    tensors = fp8_tensors(*shape)
    got = read_weight(opened(tmp_path, tensors, **DECLARED), "w.weight", shape)
    assert isinstance(got, Fp8Block) and got.activations == "fp8-group"
    values, scales = tensors.values()
    want = torch.empty(shape)
    for i in range(shape[0]):
        for j in range(0, shape[1], 128):
            want[i, j : j + 128] = values[i, j : j + 128].float() * scales[i // 128, j // 128]
    assert_matches(got.dequantize(), want, "elementwise")
    assert got.scales.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e8m0fnu])
def test_scales_in_narrow_dtypes_become_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = fp8_tensors(200, 200, pow2=True)
    exact = tensors["w.weight_scale_inv"]
    tensors["w.weight_scale_inv"] = exact.to(dtype)
    checkpoint = opened(tmp_path, tensors, quantization_config=FP8)
    got = read_weight(checkpoint, "w.weight", (200, 200))
    assert isinstance(got, Fp8Block)
    assert got.scales.dtype == torch.float32 and torch.equal(got.scales, exact)


def test_a_scale_of_zero_is_a_block_of_zeros(tmp_path: Path) -> None:
    tensors = fp8_tensors(128, 256)
    tensors["w.weight_scale_inv"][0, 1] = 0.0
    got = read_weight(opened(tmp_path, tensors, **DECLARED), "w.weight", (128, 256))
    assert isinstance(got, Fp8Block)
    assert bool((got.dequantize()[:, 128:] == 0).all()) and bool(got.dequantize()[:, :128].any())


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
def test_plain_weights_keep_their_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    want = torch.randn(3, 5).to(dtype)
    got = read_weight(opened(tmp_path, {"a": want}), "a", (3, 5))
    assert isinstance(got, torch.Tensor) and got.dtype == dtype and torch.equal(got, want)


def no_names(name: str) -> bool:
    return False


def test_tensors_as_expected(tmp_path: Path) -> None:
    tensors = fp8_tensors(2, 3) | {"norm": torch.ones(4)}
    checkpoint = opened(tmp_path, tensors, quantization_config=FP8)
    check_tensors(checkpoint, {"w.weight": (2, 3), "norm": (4,)}, ignored=no_names)


def test_ignored_surplus(tmp_path: Path) -> None:
    """As a model's multi-token-prediction layer and a tied head are."""
    extra = fp8_tensors(2, 3, "model.layers.2.w.weight") | {"lm_head.weight": torch.ones(2)}
    checkpoint = opened(tmp_path, extra | {"norm": torch.ones(4)}, **DECLARED)
    asked: list[str] = []

    def ignored(name: str) -> bool:
        asked.append(name)
        return name.startswith(("model.layers.2.", "lm_head."))

    check_tensors(checkpoint, {"norm": (4,)}, ignored=ignored)
    assert "norm" not in asked and "lm_head.weight" in asked
