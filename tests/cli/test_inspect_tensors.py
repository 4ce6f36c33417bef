"""inspect on tensors that are wrong: each with its words, its exit code, and what loading says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("compressed_tensors")

from checkpoints.dialects import BY_NAME
from cli.inspected import (
    CONTRADICTION,
    LLAMA,
    MOE,
    SCALES,
    Q,
    Tensors,
    looked,
    problems,
    tensors_of,
    write,
    zeros,
)
from sparkwell.errors import BadCheckpoint
from sparkwell.models.load import load_model

UP = "model.layers.1.mlp.experts.2.up_proj"
BELONG = "check that config.json and the weights belong to the same model and version"


# ---------------------------------------------------------------- broken ones


def change(leaf: str, **values: Any) -> Callable[[Tensors], None]:
    """Set bytes or values of Q's tensor."""

    def apply(tensors: Tensors) -> None:
        tensor = tensors[f"{Q}.{leaf}"]
        if "byte" in values:
            tensor.view(torch.uint8)[values["at"]] = values["byte"]
        else:
            tensor.fill_(values["value"])

    return apply


def put(leaf: str, tensor: torch.Tensor | None, module: str = Q) -> Callable[[Tensors], None]:
    """Another tensor in place of one; None: none."""

    def apply(tensors: Tensors) -> None:
        tensors.pop(f"{module}.{leaf}", None)
        if tensor is not None:
            tensors[f"{module}.{leaf}"] = tensor

    return apply


def puts(**leaves: torch.Tensor | None) -> Callable[[Tensors], None]:
    """Several at once."""

    def apply(tensors: Tensors) -> None:
        for leaf, tensor in leaves.items():
            put(leaf, tensor)(tensors)

    return apply


E4M3, I32 = torch.float8_e4m3fn, torch.int32
FACTOR = "scale of the whole tensor is no positive number"
# dialect, what is done to it, problem, leaf of the tensor, came, wanted
BROKEN: dict[str, tuple[str, Callable[[Tensors], None], str, str, str, str]] = {
    "NaN scale byte": (
        "ct-nvfp4", change("weight_scale", at=(3, 2), byte=0x7F), SCALES, "weight_scale",
        "nan at [3, 2], one of 1 such scales", "finite, >= 0"),
    "the other NaN scale byte": (
        "modelopt-nvfp4", change("weight_scale", at=(3, 2), byte=0xFF), SCALES, "weight_scale",
        "nan at [3, 2], one of 1 such scales", "finite, >= 0"),
    "negative scale byte": (
        "modelopt-nvfp4", change("weight_scale", at=(0, 7), byte=0x81), SCALES, "weight_scale",
        "-0.001953125 at [0, 7], one of 1 such scales", "finite, >= 0"),
    "NaN exponent": (
        "ct-mxfp4a16", change("weight_scale", at=(1, 1), byte=255), SCALES, "weight_scale",
        "e8m0 255 (NaN) at [1, 1], one of 1 such scales", "finite, >= 0"),
    "negative FP8 scale": (
        "ct-fp8-dynamic", change("weight_scale", value=-2.0), SCALES, "weight_scale",
        "-2.0 at [0, 0], one of 128 such scales", "finite, >= 0"),
    "infinite block scale": (
        "deepseek", change("weight_scale_inv", value=float("inf")), SCALES, "weight_scale_inv",
        "inf at [0, 0], one of 1 such scales", "finite, >= 0"),
    "infinite INT4 scale": (
        "awq", change("scales", value=float("inf")), SCALES, "scales",
        "inf at [0, 0], one of 256 such scales", "finite, >= 0"),
    "divisor of zero": (
        "ct-nvfp4", change("weight_global_scale", value=0.0), FACTOR, "weight_global_scale",
        "0.0", "finite, > 0"),
    "NaN multiplier": (
        "modelopt-nvfp4", change("weight_scale_2", value=float("nan")), FACTOR, "weight_scale_2",
        "nan", "finite, > 0"),
    "misaligned K": (
        "ct-nvfp4", put("weight_packed", zeros(128, 60)), "rows end inside a group of one scale",
        "weight_packed", "rows of 120 values in groups of 16",
        "a multiple of 16 values in a row"),
    "misaligned K, MXFP4": (
        "ct-mxfp4a16", put("weight_packed", zeros(128, 56)),
        "rows end inside a group of one scale", "weight_packed",
        "rows of 112 values in groups of 32", "a multiple of 32 values in a row"),
    "misaligned K, INT4": (
        "awq", put("qweight", zeros(96, 16, dtype=I32)), "rows end inside a group of one scale",
        "qweight", "rows of 96 values in groups of 64", "a multiple of 64 values in a row"),
    "wrong packed dtype": (
        "ct-nvfp4", put("weight_packed", zeros(128, 64, dtype=torch.int8)),
        "packed weight of a wrong dtype", "weight_packed", "I8 [128, 64]", "U8 or I32"),
    "wrong packed dtype, GPTQ": (
        "gptq", put("qweight", zeros(16, 128, dtype=torch.int64)),
        "packed weight of a wrong dtype", "qweight", "I64 [16, 128]", "I32"),
    "packed weight that is no matrix": (
        "ct-nvfp4", put("weight_packed", zeros(2, 64, 64)), "quantized weight is no matrix",
        "weight_packed", "U8 [2, 64, 64]", "two sizes"),
    "scale shape": (
        "ct-nvfp4", put("weight_scale", zeros(128, 4, dtype=E4M3)), "scales of a wrong shape",
        "weight_scale", "[128, 4]", f"[128, 8] for {Q}.weight_packed U8 [128, 64]"),
    "scale shape, FP8": (
        "ct-fp8-dynamic", put("weight_scale", torch.ones(64, 1)), "scales of a wrong shape",
        "weight_scale", "[64, 1]", "[] or [1] or [1, 1] or [128, 1] or [128] or [1, 1] or"),
    "scale dtype": (
        "ct-nvfp4", put("weight_scale", torch.ones(128, 8)), "scales of a wrong dtype",
        "weight_scale", "F32", "F8_E4M3"),
    "number of INT4 groups": (
        "ct-w4a16", put("weight_scale", torch.ones(128, 2)),
        "number of scales contradicts the group size", "weight_packed",
        f"2 scales for 128 values of {Q}.weight_packed", "1: groups of 128, says config_groups."),
    "too few INT4 groups": (
        "gptq", puts(scales=torch.ones(1, 128), qzeros=zeros(1, 16, dtype=I32)),
        "number of scales contradicts the group size", "qweight",
        f"1 scales for 128 values of {Q}.qweight", "2: groups of 64, says quant_method = 'gptq'"),
    "no scales": (
        "ct-nvfp4", put("weight_scale", None), "quantized weight without weight_scale",
        "weight_packed", "U8 [128, 64]", f"{Q}.weight_scale"),
    "no global scale": (
        "ct-nvfp4", put("weight_global_scale", None),
        "quantized weight without weight_global_scale", "weight_packed", "U8 [128, 64]",
        f"{Q}.weight_global_scale"),
    "no second scale": (
        "modelopt-nvfp4", put("weight_scale_2", None), "quantized weight without weight_scale_2",
        "weight", "U8 [128, 64]", f"{Q}.weight_scale_2"),
    "no zero points": (
        "ct-w4a16-asym", put("weight_zero_point", None),
        "quantized weight without weight_zero_point", "weight_packed", "I32 [128, 16]",
        f"{Q}.weight_zero_point"),
    "no zero points, GPTQ": (
        "gptq", put("qzeros", None), "quantized weight without qzeros", "qweight",
        "I32 [16, 128]", f"{Q}.qzeros"),
    "scales of nothing": (
        "ct-nvfp4", put("weight_packed", None), "scales without a weight that they belong to",
        "weight_scale", "F8_E4M3 [128, 8]", f"{Q}.weight, quantized as the scales say"),
    "second scale of nothing": (
        "modelopt-nvfp4", put("weight", None), "scales without a weight", "weight_scale_2",
        "no such weight", f"{Q}.weight"),
    "FP8 in an NVFP4 export": (
        "modelopt-nvfp4", puts(weight=zeros(128, 128, dtype=E4M3),
                               weight_scale=torch.tensor(1.0), weight_scale_2=None),
        CONTRADICTION, "weight", "fp8-rows of modelopt: F8_E4M3 [128, 128]",
        "nvfp4, says NVFP4 in config.json"),
    "AWQ's factors of inputs": (
        "modelopt-nvfp4", put("pre_quant_scale", torch.ones(128)),
        "a factor for each input of the layer is not supported", "pre_quant_scale",
        "ModelOpt's AWQ or SVDQuant", "NVFP4 without it"),
    "another dialect's tensors": (
        "ct-nvfp4", puts(weight_packed=None, weight_scale=None, weight_global_scale=None,
                         input_global_scale=None, weight=zeros(128, 128, dtype=E4M3),
                         weight_scale_inv=torch.ones(1, 1)),
        CONTRADICTION, "weight", "fp8-block of fp8: F8_E4M3 [128, 128]",
        "tensors of compressed-tensors, says config.json"),
    "int8 weights": (
        "ct-fp8-dynamic", put("weight", zeros(128, 128, dtype=torch.int8)),
        "weight of a dtype that no supported format explains", "weight",
        "I8 [128, 128] beside weight, weight_scale", "FP8 or packed FP4 with their scales"),
    "groups of columns": (
        "gptq-act-order", change("g_idx", value=0), "columns of the groups do not fit", "g_idx",
        "1 groups, numbered 0 to 0", "groups 0 to 1, each of 64 of the 128 columns"),
    "zero points of symmetric weights": (
        "gptq-sym", change("qzeros", value=0x66666666),
        "sym = true in the config, and other zero points", "qzeros", "6 to 6",
        "7 everywhere (version 1), or 8 (version 2)"),
    "weight_shape": (
        "ct-w4a16", put("weight_shape", torch.tensor([128, 120])),
        "weight_shape contradicts weight_packed", "weight_shape", "[128, 120]", "[128, 128]"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_broken(tmp_path: Path, what: str) -> None:
    name, apply, problem, leaf, came, wanted = BROKEN[what]
    tensors = tensors_of(BY_NAME[name], LLAMA)
    apply(tensors)
    folder = write(tmp_path, BY_NAME[name], LLAMA, tensors)
    report = looked(folder, 1)
    found = problems(report)
    assert [one["problem"] for one in found] == [problem]
    assert found[0]["tensors"] == [f"{Q}.{leaf}"] and found[0]["count"] == 1
    assert found[0]["came"].startswith(came) and found[0]["wanted"].startswith(wanted)
    assert found[0]["file"] == str(folder / "model.safetensors") and found[0]["do"]
    with pytest.raises(BadCheckpoint, match=problem.replace(".", r"\.")):  # loading says the same
        load_model(folder)


EXPERT = {
    "missing": (None, "scale of the activations is missing", UP + ".weight"),
    "zero": (0.0, "scale of the activations is no positive number", UP + ".input_scale"),
    "infinite": (float("inf"), "scale of the activations is no positive number",
                 UP + ".input_scale"),
}  # fmt: skip


@pytest.mark.parametrize("what", EXPERT)
def test_experts_that_calibration_did_not_reach(tmp_path: Path, what: str) -> None:
    value, problem, tensor = EXPERT[what]
    tensors = tensors_of(BY_NAME["modelopt-nvfp4"], MOE)
    put("input_scale", None if value is None else torch.tensor(value), UP)(tensors)
    report = looked(write(tmp_path, BY_NAME["modelopt-nvfp4"], MOE, tensors), 1)
    assert [(one["problem"], one["tensors"]) for one in problems(report)] == [(problem, [tensor])]
    load_model(tmp_path)  # what multiplies takes the scale from the activations


def test_missing_surplus_and_misshaped(tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME["ct-nvfp4"], LLAMA)
    for leaf in ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"):
        del tensors[f"{Q}.{leaf}"]
    tensors["model.extra.weight"] = torch.ones(2, 3)
    tensors["model.norm.weight"] = torch.ones(127)
    report = looked(write(tmp_path, BY_NAME["ct-nvfp4"], LLAMA, tensors), 1)
    found = {one["problem"]: one for one in problems(report)}
    missing = found.pop("missing tensor")
    assert (missing["tensors"], missing["came"]) == ([f"{Q}.weight"], "absent")
    assert missing["wanted"] == "[128, 128]" and missing["do"] == BELONG
    surplus = found.pop("unexpected tensor")
    assert (surplus["tensors"], surplus["came"]) == (["model.extra.weight"], "[2, 3]")
    shape = found.pop("tensor of a wrong shape")
    assert (shape["came"], shape["wanted"]) == ("[127]", "[128]") and not found


def test_a_plain_tensor_of_integers(tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME["ct-nvfp4"], LLAMA)
    tensors["model.norm.weight"] = torch.ones(128, dtype=torch.int32)
    report = looked(write(tmp_path, BY_NAME["ct-nvfp4"], LLAMA, tensors), 1)
    (one,) = problems(report)
    assert (one["problem"], one["came"]) == ("tensor of a wrong dtype", "I32")


def test_biases_of_zeros_beside_gptq(tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME["gptq"], LLAMA)
    tensors[f"{Q}.bias"] = torch.zeros(128, dtype=torch.float16)
    looked(write(tmp_path, BY_NAME["gptq"], LLAMA, tensors), 0)
    load_model(tmp_path)
    tensors[f"{Q}.bias"][5] = 1
    report = looked(write(tmp_path, BY_NAME["gptq"], LLAMA, tensors), 1)
    assert problems(report)[0]["tensors"] == [f"{Q}.bias"]
