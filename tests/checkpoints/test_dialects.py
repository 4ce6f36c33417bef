"""Every dialect: recognised by its tensors, read to the values its own formula gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.checkpoint_files import LLAMA, write_folder
from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.checkpoints.schemes import read_weight, stored_bytes
from sparkwell.checkpoints.survey import survey
from sparkwell.errors import BadCheckpoint
from sparkwell.formats import Fp8Block, Fp8Rows, Int4Group, Mxfp4, Nvfp4

pytest.importorskip("compressed_tensors")

from checkpoints.dialects import BY_NAME, DIALECTS, GPT_OSS, Dialect, stacked_experts

KINDS = {
    "fp8-block": Fp8Block,
    "fp8-rows": Fp8Rows,
    "nvfp4": Nvfp4,
    "mxfp4": Mxfp4,
    "int4": Int4Group,
}


def weight(n: int = 256, k: int = 384, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(n, k, generator=generator)
    w *= torch.exp(torch.randn(n, 1, generator=generator))
    w[3], w[4] = w[3].abs(), -w[4].abs()  # zero points at both ends
    return w


def opened(folder: Path, dialect: Dialect, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    config: dict[str, Any] = LLAMA
    if dialect.config:
        config = LLAMA | {"quantization_config": dialect.config}
    write_folder(folder, tensors, config)
    if dialect.beside:
        (folder / "hf_quant_config.json").write_text(json.dumps(dialect.beside))
    return Checkpoint.open(folder)


def one_module(dialect: Dialect, w: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    parts, value = dialect.write(w)
    return {f"a.q_proj.{leaf}": part for leaf, part in parts.items()}, value


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_a_weight_has_the_values_of_its_formula(tmp_path: Path, dialect: Dialect) -> None:
    w = weight()
    tensors, want = one_module(dialect, w)
    assert (want - w).norm() / w.norm() < 0.25, "the writer itself must be right"
    checkpoint = opened(tmp_path, dialect, tensors | {"norm.weight": torch.ones(4)})
    found = survey(checkpoint)
    stored = found.weights["a.q_proj.weight"]
    assert (stored.kind, stored.shape) == (dialect.kind, (256, 384))
    assert stored.activations == dialect.activations
    assert found.shapes(checkpoint) == {"a.q_proj.weight": (256, 384), "norm.weight": (4,)}
    got = read_weight(checkpoint, "a.q_proj.weight", (256, 384))
    assert type(got) is KINDS[dialect.kind] and got.shape == (256, 384)
    torch.testing.assert_close(got.dequantize(), want.float(), rtol=3e-7, atol=0)
    if not isinstance(got, Int4Group):
        assert got.activations == dialect.activations
    used = stored_bytes(checkpoint, "a.q_proj.weight")
    assert got.nbytes * 0.7 < used <= sum(t.nbytes for t in tensors.values())


@pytest.mark.parametrize("name", ["ct-nvfp4", "modelopt-nvfp4", "ct-fp8-static", "modelopt-fp8"])
def test_scales_of_activations_become_multipliers(tmp_path: Path, name: str) -> None:
    tensors, _ = one_module(BY_NAME[name], weight())
    got = read_weight(opened(tmp_path, BY_NAME[name], tensors), "a.q_proj.weight", (256, 384))
    assert isinstance(got, Nvfp4 | Fp8Rows) and got.input_scale is not None
    want = {"ct-nvfp4": 1 / 350.0, "modelopt-nvfp4": 0.004, "ct-fp8-static": 0.01}
    assert got.input_scale.shape == ()
    assert got.input_scale.item() == pytest.approx(want.get(name, 0.02), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan"), -1.0])
@pytest.mark.parametrize("name", ["ct-nvfp4", "modelopt-nvfp4", "modelopt-fp8"])
def test_a_scale_of_activations_that_is_none_is_left_out(
    tmp_path: Path, name: str, value: float
) -> None:
    """Experts that calibration never reached have such; what is not fixed is computed."""
    tensors, want = one_module(BY_NAME[name], weight())
    leaf = "a.q_proj.input_global_scale" if name.startswith("ct") else "a.q_proj.input_scale"
    tensors[leaf].fill_(value)
    got = read_weight(opened(tmp_path, BY_NAME[name], tensors), "a.q_proj.weight", (256, 384))
    assert isinstance(got, Nvfp4 | Fp8Rows) and got.input_scale is None
    torch.testing.assert_close(got.dequantize(), want, rtol=3e-7, atol=0)


def test_gptq_order_only_where_columns_move(tmp_path: Path) -> None:
    for name in ("gptq", "gptq-act-order"):
        tensors, _ = one_module(BY_NAME[name], weight())
        got = read_weight(opened(tmp_path, BY_NAME[name], tensors), "a.q_proj.weight", (256, 384))
        assert isinstance(got, Int4Group)
        assert (got.order is None) == (name == "gptq")
        if got.order is not None:  # stored columns are those of the first group, then the second
            groups = tensors["a.q_proj.g_idx"][got.order.long()]
            assert torch.equal(groups, torch.arange(384, dtype=torch.int32) // 64)


ZEROS = {
    "gptq-sym": False,
    "gptq": True,
    "awq": True,
    "ct-w4a16": False,
    "ct-w4a16-asym": True,
}


@pytest.mark.parametrize(("name", "zeros"), ZEROS.items())
def test_zero_points_only_where_they_differ(tmp_path: Path, name: str, zeros: bool) -> None:
    tensors, _ = one_module(BY_NAME[name], weight())
    got = read_weight(opened(tmp_path, BY_NAME[name], tensors), "a.q_proj.weight", (256, 384))
    assert isinstance(got, Int4Group) and (got.zeros is not None) == zeros


@pytest.mark.parametrize("name", ["ct-fp8-dynamic", "ct-fp8-block", "ct-w4a16", "ct-w4a16-asym"])
def test_scales_in_bfloat16(tmp_path: Path, name: str) -> None:
    """As the library writes them for a bfloat16 model."""
    parts, _ = BY_NAME[name].write(weight().bfloat16())
    assert parts["weight_scale"].dtype == torch.bfloat16
    checkpoint = opened(tmp_path, BY_NAME[name], {f"a.q_proj.{k}": v for k, v in parts.items()})
    got = read_weight(checkpoint, "a.q_proj.weight", (256, 384))
    parts["weight_scale"] = parts["weight_scale"].float()
    wide = opened(tmp_path, BY_NAME[name], {f"a.q_proj.{k}": v for k, v in parts.items()})
    want = read_weight(wide, "a.q_proj.weight", (256, 384))
    assert not isinstance(got, torch.Tensor) and not isinstance(want, torch.Tensor)
    assert torch.equal(got.dequantize(), want.dequantize())


def test_stacked_experts(tmp_path: Path) -> None:
    """gpt-oss: an expert at a time is read, gate's rows and up's in turns."""
    names = ("gate", "up", "down")
    shapes = {"gate": (96, 64), "up": (96, 64), "down": (64, 96)}
    plain = {
        f"m.experts.{e}.{p}_proj.weight": weight(*shapes[p], seed=10 * e + i)
        for e in range(3)
        for i, p in enumerate(names)
    }
    tensors, values = stacked_experts(plain)
    assert tensors["m.experts.gate_up_proj_blocks"].shape == (3, 192, 2, 16)
    checkpoint = opened(tmp_path, GPT_OSS, tensors)
    found = survey(checkpoint)
    assert found.shapes(checkpoint) == {name: tuple(t.shape) for name, t in plain.items()}
    for name, want in values.items():
        got = read_weight(checkpoint, name, tuple(want.shape))
        assert isinstance(got, Mxfp4) and torch.equal(got.dequantize(), want), name
    assert sum(stored_bytes(checkpoint, name) for name in plain) == sum(
        t.nbytes for t in tensors.values()
    )
    broken = tensors | {"m.experts.down_proj_scales": torch.zeros(3, 64, 2, dtype=torch.uint8)}
    with pytest.raises(BadCheckpoint, match="scales of a wrong shape"):
        name = "m.experts.1.up_proj.weight"
        read_weight(opened(tmp_path, GPT_OSS, broken), name, (96, 64))
    tensors["m.experts.gate_up_proj_scales"][1, 3, 0] = 255  # an up row of expert 1
    checkpoint = opened(tmp_path, GPT_OSS, tensors)
    read_weight(checkpoint, "m.experts.1.gate_proj.weight", (96, 64))
    with pytest.raises(BadCheckpoint, match=r"e8m0 255 \(NaN\) at \[1, 0\]"):
        read_weight(checkpoint, "m.experts.1.up_proj.weight", (96, 64))


STACKS = [
    ("gate_up_proj_blocks", (3, 191, 2, 16), "gate and up do not take turns"),
    ("gate_up_proj_blocks", (3, 192, 2, 8), "packed weight of a wrong dtype"),
    ("gate_up_proj_blocks", (3, 192, 32), "packed weight of a wrong dtype"),
    ("down_proj_scales", None, "quantized weight without down_proj_scales"),
    ("down_proj_blocks", None, "scales without a weight"),
]


@pytest.mark.parametrize(("leaf", "shape", "problem"), STACKS)
def test_stacks_that_do_not_fit(
    tmp_path: Path, leaf: str, shape: tuple[int, ...] | None, problem: str
) -> None:
    tensors = {
        "m.experts.gate_up_proj_blocks": torch.zeros(3, 192, 2, 16, dtype=torch.uint8),
        "m.experts.gate_up_proj_scales": torch.zeros(3, 192, 2, dtype=torch.uint8),
        "m.experts.down_proj_blocks": torch.zeros(3, 64, 3, 16, dtype=torch.uint8),
        "m.experts.down_proj_scales": torch.zeros(3, 64, 3, dtype=torch.uint8),
    }
    survey(opened(tmp_path, GPT_OSS, tensors)).check()
    del tensors[f"m.experts.{leaf}"]
    if shape is not None:
        tensors[f"m.experts.{leaf}"] = torch.zeros(shape, dtype=torch.uint8)
    with pytest.raises(BadCheckpoint, match=problem):
        survey(opened(tmp_path, GPT_OSS, tensors)).check()
