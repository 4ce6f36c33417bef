"""inspect on files and configs that are wrong, and what loading says of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("compressed_tensors")

from checkpoints.checkpoint_files import write_file
from checkpoints.dialects import BY_NAME, Dialect
from cli.inspected import (
    CONTRADICTION,
    LLAMA,
    Q,
    Tensors,
    configured,
    looked,
    problems,
    run,
    tensors_of,
    write,
    zeros,
)
from sparkwell.errors import BadCheckpoint
from sparkwell.models.load import load_model

GLM = LLAMA | {
    "model_type": "glm4_moe_lite",
    "num_hidden_layers": 2,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "rope_theta": 1e6,
}
METADATA = "take config.json from the repository that the weights came from"


# ---------------------------------------------------------------- files


def shards(folder: Path) -> Path:
    """Two shards of a sound checkpoint, the second with layer 2."""
    dialect = BY_NAME["ct-nvfp4"]
    tensors = tensors_of(dialect, LLAMA)
    write(folder, dialect, LLAMA, {})
    (folder / "model.safetensors").unlink()
    parts: dict[str, Tensors] = {"a.safetensors": {}, "b.safetensors": {}}
    for name, tensor in tensors.items():
        parts["b.safetensors" if "layers.2." in name else "a.safetensors"][name] = tensor
    for file, held in parts.items():
        write_file(folder / file, held)
    index = {name: file for file, held in parts.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def test_truncated_shard(tmp_path: Path) -> None:
    file = shards(tmp_path) / "b.safetensors"
    assert looked(tmp_path, 0)["sound"]
    size = file.stat().st_size
    with open(file, "r+b") as shard:
        shard.truncate(size - 30_000)
    report = looked(tmp_path, 1)
    (one,) = problems(report)  # told once, not for every scale that is cut off
    assert one["problem"] == "file is cut off" and one["file"] == str(file)
    assert one["came"] == f"{size - 30_000} bytes"
    assert one["wanted"] == f"{size} bytes: header and all tensors"
    assert max(row["weights"] for row in report["schemes"]) == 21  # its header tells all the same


def test_a_shard_of_something_else(tmp_path: Path) -> None:
    (shards(tmp_path) / "b.safetensors").write_bytes(b"<html>not found</html>")
    report = looked(tmp_path, 1)
    said = [one["problem"] for one in problems(report)]
    assert said == [
        "header too long",
        "index names tensors that its files do not hold",
        "missing tensor",
    ]
    assert max(row["weights"] for row in report["schemes"]) == 14


def test_absent_shard(tmp_path: Path) -> None:
    (shards(tmp_path) / "b.safetensors").unlink()
    said = [one["problem"] for one in problems(looked(tmp_path, 1))]
    assert said == ["index names absent files", "missing tensor"]


def test_duplicate_tensors(tmp_path: Path) -> None:
    file = shards(tmp_path) / "c.safetensors"
    write_file(file, {f"{Q}.weight_scale": zeros(128, 8, dtype=torch.float8_e4m3fn)})
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["other"] = "c.safetensors"
    path.write_text(json.dumps(index))
    report = looked(tmp_path, 1)
    found = {one["problem"]: one for one in problems(report)}
    twice = found.pop("tensor stands in two files")
    assert twice["tensors"] == [f"{Q}.weight_scale"]
    assert twice["came"] == "a.safetensors and c.safetensors"
    assert list(found) == ["index names tensors that its files do not hold"]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", "{", "config.json is not valid JSON"),
        ("config.json", None, "no config.json in the model's folder"),
        ("model.safetensors", None, "no safetensors weights in the folder"),
        ("model.safetensors", "x" * 100, "header too long"),
    ],
)
def test_unreadable(tmp_path: Path, file: str, content: str | None, said: str) -> None:
    write(tmp_path, BY_NAME["ct-nvfp4"], LLAMA)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    result = run(tmp_path, "--json")
    assert result.exit_code == 2 and result.stdout == ""
    assert f"error: checkpoint: {said}" in result.stderr
    with pytest.raises(BadCheckpoint, match=said):
        run(tmp_path, "--debug")


def test_usage() -> None:
    assert run().exit_code == 2
    assert run("no/such/folder/here").exit_code == 2


# ---------------------------------------------------------------- what the config says


def one_problem(folder: Path) -> dict[str, Any]:
    found = problems(looked(folder, 1))
    with pytest.raises(BadCheckpoint) as caught:
        load_model(folder)
    assert caught.value.problem == found[0]["problem"] and len(found) == 1
    return found[0]


def test_no_quantization_config(tmp_path: Path) -> None:
    dialect = Dialect("", "", {}, BY_NAME["ct-nvfp4"].write)
    one = one_problem(write(tmp_path, dialect, LLAMA))
    assert one["problem"] == "tensors are quantized, but config.json has no quantization_config"
    assert one["do"] == METADATA


def test_a_config_for_other_tensors(tmp_path: Path) -> None:
    groups = BY_NAME["ct-fp8-dynamic"].config["config_groups"]
    one = one_problem(configured(tmp_path, "ct-nvfp4", config_groups=groups))
    assert one["problem"] == CONTRADICTION and one["count"] == 21
    assert one["came"] == "nvfp4 of compressed-tensors: U8 [128, 64]"
    assert one["wanted"] == "fp8-rows, says config_groups.group_0 in config.json"
    assert one["do"] == METADATA


def test_a_config_of_another_program(tmp_path: Path) -> None:
    one = one_problem(configured(tmp_path, "awq", quant_method="gptq"))
    assert one["came"] == "int4 of awq: I32 [128, 16]"
    assert one["wanted"] == "tensors of gptq, says config.json"


def test_two_configs_that_disagree(tmp_path: Path) -> None:
    folder = configured(tmp_path, "modelopt-nvfp4")
    beside = {"quantization": {"quant_algo": "W4A16_NVFP4"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    one = one_problem(folder)
    assert one["problem"] == "config.json and hf_quant_config.json contradict each other"
    assert one["came"] == "quant_algo W4A16_NVFP4, and NVFP4 in config.json"
    beside["quantization"]["quant_algo"] = "NVFP4"
    (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    looked(folder, 0)


def weights_of(name: str, **fields: Any) -> dict[str, Any]:
    group = BY_NAME[name].config["config_groups"]["group_0"]
    return {"group_0": group | {"weights": group["weights"] | fields}}


UNSUPPORTED: list[tuple[str, dict[str, Any], str]] = [
    ("ct-nvfp4", {"quant_method": "bitsandbytes"}, "quant_method = 'bitsandbytes'"),
    ("ct-nvfp4", {"config_groups": None}, "config_groups = None"),
    ("ct-nvfp4", {"config_groups": {"g": {"targets": "Linear"}}}, "config_groups.g.targets = "),
    ("ct-nvfp4", {"config_groups": {"g": {"targets": ["re:("]}}}, "config_groups.g.targets: "),
    ("ct-nvfp4", {"config_groups": {"g": {"targets": [], "weights": 3}}}, "config_groups.g: w"),
    ("ct-nvfp4", {"transform_config": {"config_groups": {"R1": {}}}}, "transform_config with R1"),
    ("ct-w4a16", {"config_groups": weights_of("ct-w4a16", num_bits=8)},
     "config_groups.group_0.weights: num_bits 8, type int, strategy group, group_size 128"),
    ("ct-fp8-block", {"config_groups": weights_of("ct-fp8-block", block_structure=[64, 64])},
     "config_groups.group_0.weights: num_bits 8, type float, strategy block"),
    ("modelopt-nvfp4", {"quant_algo": "W4A8_NVFP4_FP8"}, "ModelOpt's quant_algo = 'W4A8_N"),
    ("modelopt-nvfp4", {"group_size": 32}, "ModelOpt's NVFP4 with group_size = 32"),
    ("awq", {"bits": 8}, "AWQ of 8 bits in layout 'gemm'"),
    ("awq", {"version": "gemv"}, "AWQ of 4 bits in layout 'gemv'"),
    ("gptq", {"bits": 3}, "GPTQ of 3 bits in checkpoint_format 'gptq'"),
    ("gptq", {"checkpoint_format": "marlin"}, "GPTQ of 4 bits in checkpoint_format 'marlin'"),
    ("deepseek", {"weight_block_size": [1, 128]}, "quant_method = 'fp8' with weight_block_size"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields", "came"), UNSUPPORTED)
def test_unsupported_schemes(tmp_path: Path, name: str, fields: dict[str, Any], came: str) -> None:
    one = one_problem(configured(tmp_path, name, **fields))
    assert one["problem"] == "quantization scheme is not supported"
    assert one["came"].startswith(f"quantization_config: {came}") and one["wanted"]


def test_formats_of_other_programs(tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME["ct-fp8-dynamic"], LLAMA)
    tensors[f"{Q}.absmax"] = torch.ones(3)
    one = one_problem(write(tmp_path, BY_NAME["ct-fp8-dynamic"], LLAMA, tensors))
    assert one["came"] == f"bitsandbytes, says {Q}.absmax"
    del tensors[f"{Q}.absmax"]
    tensors[f"{Q}.weight_scale"] = zeros(128, 4)
    one = one_problem(write(tmp_path, BY_NAME["ct-fp8-dynamic"], LLAMA, tensors))
    assert one["came"] == f"MXFP8 in {Q}.weight"


def test_unknown_architecture_is_a_note(tmp_path: Path) -> None:
    config = LLAMA | {"model_type": "gpt_oss"}
    folder = write(tmp_path, BY_NAME["ct-nvfp4"], LLAMA)
    fields = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(fields))
    report = looked(folder, 0)
    assert report["sound"] and report["architecture"] == "gpt_oss"
    assert "no model of architecture 'gpt_oss'" in report["findings"][0]["problem"]
    fields["model_type"], fields["hidden_size"] = "llama", "wide"
    (folder / "config.json").write_text(json.dumps(fields))
    assert "hidden_size" in problems(looked(folder, 1))[0]["problem"]


def test_what_nothing_uses_may_be_wrong(tmp_path: Path) -> None:
    """A prediction layer in a format that the config does not tell of: published models have it."""
    config = GLM | {"num_nextn_predict_layers": 1}
    dialect = BY_NAME["modelopt-nvfp4"]
    tensors = tensors_of(dialect, config)
    extra = "model.layers.2.mlp.down_proj"
    tensors[f"{extra}.weight"] = zeros(128, 128, dtype=torch.float8_e4m3fn)
    tensors[f"{extra}.weight_scale"] = torch.tensor(1.0)
    tensors["model.layers.2.mlp.up_proj.weight_scale"] = torch.tensor(float("nan"))
    report = looked(write(tmp_path, dialect, config, tensors), 0)
    said = {one["problem"]: one for one in report["findings"] if one["tensors"]}
    assert said[CONTRADICTION]["severity"] == "note"
    assert said[CONTRADICTION]["tensors"] == [f"{extra}.weight"]
    load_model(tmp_path)
    used = "model.layers.1.mlp.down_proj"
    for leaf in ("weight_scale_2", "input_scale", "weight_scale", "weight"):
        del tensors[f"{used}.{leaf}"]
    tensors[f"{used}.weight"] = zeros(128, 256, dtype=torch.float8_e4m3fn)
    tensors[f"{used}.weight_scale"] = torch.tensor(1.0)
    report = looked(write(tmp_path, dialect, config, tensors), 1)
    assert problems(report)[0]["tensors"] == [f"{used}.weight"]
    with pytest.raises(BadCheckpoint, match="contradict"):
        load_model(tmp_path)
