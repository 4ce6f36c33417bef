"""inspect: sound checkpoints of every dialect, the table, the JSON, the notes."""

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("compressed_tensors")

from checkpoints.dialects import BY_NAME, DIALECTS, GPT_OSS, Dialect
from cli.inspected import (
    LLAMA,
    MOE,
    SCALES,
    Q,
    configured,
    looked,
    problems,
    run,
    tensors_of,
    write,
)
from sparkwell.checkpoints.config import parse_config
from sparkwell.checkpoints.holdings import braced, ranges
from sparkwell.checkpoints.inspection import inspect
from sparkwell.checkpoints.locate import locate
from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.cli import app
from sparkwell.formats import dequantize
from sparkwell.models.load import expected_tensors, load_model

# ---------------------------------------------------------------- sound ones


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_sound(tmp_path: Path, dialect: Dialect) -> None:
    report = looked(write(tmp_path, dialect, LLAMA), 0)
    assert report["sound"] and not problems(report)
    assert report["architecture"] == "llama" and report["read"] == "scales"
    assert report["dialect"] == (dialect.config.get("quant_method") or "modelopt")
    first = next(row for row in report["schemes"] if row["weights"] == 21)  # 3 layers of 7
    assert first["activations"] == dialect.activations
    assert first["scheme"].split()[0] == dialect.kind.split("-")[0]
    assert report["bytes"] == sum(t.nbytes for t in tensors_of(dialect, LLAMA).values())
    assert sum(row["bytes"] for row in report["schemes"]) == report["bytes"]
    assert sum(row["bytes"] for row in report["layers"]) == report["bytes"]
    shapes = expected_tensors(parse_config(LLAMA)).values()
    extra = report["parameters"] - sum(torch.Size(shape).numel() for shape in shapes)
    assert 0 <= extra < 21 * 3  # unused static scales count as tensors of their own


def test_the_packaged_model_is_sound() -> None:
    report = looked(Path("bard"), 0)
    assert report["sound"] and report["findings"] == []
    assert report["checkpoint"] == str(locate("bard"))
    assert report["dialect"] is None and report["architecture"] == "glm_moe_dsa"


def test_stacked_experts_are_sound(tmp_path: Path) -> None:
    report = looked(write(tmp_path, GPT_OSS, MOE), 0)
    row = report["schemes"][-1] if report["schemes"][-1]["scheme"] == "mxfp4" else None
    row = row or next(r for r in report["schemes"] if r["scheme"] == "mxfp4")
    assert (row["weights"], row["bits_per_weight"]) == (36, 4.25)  # 3 layers of 4 experts of 3


def test_mixed_precision(tmp_path: Path) -> None:
    """FP8 down, NVFP4 for the rest, as compressed-tensors and as ModelOpt say it."""
    nvfp4, fp8 = BY_NAME["ct-nvfp4"], BY_NAME["ct-fp8-dynamic"]
    groups = {
        "group_0": fp8.config["config_groups"]["group_0"] | {"targets": ["re:.*down_proj$"]},
        "group_1": nvfp4.config["config_groups"]["group_0"],
    }
    config = nvfp4.config | {"config_groups": groups, "format": "mixed-precision"}
    tensors = tensors_of(nvfp4, LLAMA)
    down = {n: t for n, t in tensors_of(fp8, LLAMA).items() if "down_proj" in n}
    mixed = {n: t for n, t in tensors.items() if "down_proj" not in n} | down
    dialect = Dialect("mixed", "", config, nvfp4.write)
    report = looked(write(tmp_path, dialect, LLAMA, mixed), 0)
    found = {(r["scheme"], r["activations"]): r["weights"] for r in report["schemes"]}
    assert found["nvfp4", "nvfp4"] == 18 and found["fp8", "fp8-token"] == 3
    load_model(tmp_path)
    # The group that comes first by the library's rules decides, not the first in the file.
    groups["group_1"] = groups["group_1"] | {"targets": ["Linear", Q]}
    groups["group_0"] = groups["group_0"] | {"targets": ["re:.*"]}
    write(tmp_path, Dialect("mixed", "", config, nvfp4.write), LLAMA, mixed)
    wrong = problems(looked(tmp_path, 1))[0]
    assert wrong["problem"] == "config and tensors contradict each other"
    assert Q + ".weight_packed" not in wrong["tensors"] and wrong["count"] == 17


def test_modelopt_mixed_precision(tmp_path: Path) -> None:
    nvfp4, fp8 = BY_NAME["modelopt-nvfp4"], BY_NAME["modelopt-fp8"]
    tensors = tensors_of(nvfp4, LLAMA)
    down = {n: t for n, t in tensors_of(fp8, LLAMA).items() if "down_proj" in n}
    mixed = {n: t for n, t in tensors.items() if "down_proj" not in n} | down
    layers = {"model.layers.*.down_proj": {"quant_algo": "FP8"}, Q: {"quant_algo": "NVFP4"}}
    config = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    dialect = Dialect("mixed", "", config | {"quantized_layers": layers}, nvfp4.write)
    report = looked(write(tmp_path, dialect, LLAMA, mixed), 0)
    found = {(r["scheme"], r["activations"]): r["weights"] for r in report["schemes"]}
    assert found["nvfp4", "nvfp4"] == 18 and found["fp8", "fp8-tensor"] == 3
    layers[Q] = {"quant_algo": "FP8"}
    write(tmp_path, dialect, LLAMA, mixed)
    wrong = problems(looked(tmp_path, 1))
    assert [w["tensors"] for w in wrong] == [[f"{Q}.weight"]]
    assert wrong[0]["wanted"] == "fp8-rows, says FP8 in config.json"
    layers[Q] = {"quant_algo": "NVFP4"}
    layers["model.layers.2.*.up_proj"] = {"quant_algo": "FP8"}
    write(tmp_path, dialect, LLAMA, mixed)
    wrong = problems(looked(tmp_path, 1))
    assert [w["tensors"] for w in wrong] == [["model.layers.2.mlp.up_proj.weight"]]


def test_layers_left_out_by_a_list_that_is_wrong(tmp_path: Path) -> None:
    """Published lists are; what is quantized decides."""
    dialect = BY_NAME["ct-nvfp4"]
    lists = {"ignore": ["re:.*q_proj", "lm_head", "model.layers.0"]}
    wrong = Dialect("ignored", "", dialect.config | lists, dialect.write)
    report = looked(write(tmp_path, wrong, LLAMA), 0)
    assert max(row["weights"] for row in report["schemes"]) == 21


# ---------------------------------------------------------------- the table


def test_the_table_is_short_and_names_everything(tmp_path: Path) -> None:
    write(tmp_path, BY_NAME["ct-nvfp4"], MOE | {"num_hidden_layers": 8})
    result = CliRunner().invoke(app, ["inspect", str(tmp_path)], env={"COLUMNS": "150"})
    assert result.exit_code == 0, result.stderr
    table = result.stdout.partition("parameters in")[0]
    assert len(table.splitlines()) < 16
    assert "mlp.experts.*.{down_proj, gate_proj, up_proj}" in table
    row = next(line for line in table.splitlines() if "experts" in line)
    assert row.split()[0] == "0-7" and "nvfp4" in row and "4.50" in row
    assert "qwen3_moe" in result.stdout and "compressed-tensors" in result.stdout
    assert "sound, by its headers and scales" in result.stdout
    one = CliRunner().invoke(app, ["inspect", str(tmp_path), "--layers"], env={"COLUMNS": "150"})
    table = one.stdout.partition("parameters in")[0]
    numbers = [line.split()[0] for line in table.splitlines() if "experts" in line]
    assert numbers == [str(i) for i in range(8)]
    rows = looked(tmp_path, 0, "--layers")["layers"]
    assert [r["layers"] for r in rows if "mlp.experts.*.up_proj" in r["parts"]] == [
        [i] for i in range(8)
    ]


def test_scales_that_nothing_uses_are_counted(tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME["ct-nvfp4"], LLAMA)
    tensors[f"{Q}.weight_zero_point"] = torch.zeros(128, 8)  # of old versions of the library
    report = looked(write(tmp_path, BY_NAME["ct-nvfp4"], LLAMA, tensors), 0)
    assert report["bytes"] == sum(t.nbytes for t in tensors.values())


def test_layers_as_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranges([3]) == "3" and ranges([]) == ""
    assert braced(["a.b.c", "a.b.d", "e", "f.g"]) == "a.b.{c, d}, e, f.g"


def test_activations_have_a_column_where_there_are_any(tmp_path: Path) -> None:
    for name, there in (("ct-nvfp4", True), ("ct-nvfp4a16", False)):
        write(tmp_path, BY_NAME[name], LLAMA)
        heads = run(tmp_path).stdout.splitlines()[2].split()
        assert heads[:2] == ["layers", "parts"] and ("activations" in heads) == there


def test_problems_in_words(tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME["ct-nvfp4"], LLAMA)
    for name in list(tensors):
        if name.endswith("weight_scale"):
            tensors[name].view(torch.uint8)[0, 0] = 0x7F
    result = run(write(tmp_path, BY_NAME["ct-nvfp4"], LLAMA, tensors))
    assert result.exit_code == 1
    said = result.stdout.partition(f"problem: {SCALES}")[2].splitlines()
    assert said[1] == f"  file    {tmp_path}/model.safetensors"
    assert said[2].startswith("  tensor  model.layers.0.") and said[2].endswith("and 18 more")
    assert said[3:6] == [
        "  came    nan at [0, 0], one of 1 such scales",
        "  wanted  finite, >= 0",
        "  do      download the files again; weights and scales may be of different versions",
    ]
    assert "1 problem found, by its headers and scales" in result.stdout


def test_fast_reads_headers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = tensors_of(BY_NAME["ct-nvfp4"], LLAMA)
    tensors[f"{Q}.weight_scale"].view(torch.uint8)[0, 0] = 0x7F
    write(tmp_path, BY_NAME["ct-nvfp4"], LLAMA, tensors)
    read: list[str] = []
    whole = Checkpoint.read

    def recorded(self: Checkpoint, name: str, **options: Any) -> torch.Tensor:
        read.append(name)
        return whole(self, name, **options)

    monkeypatch.setattr(Checkpoint, "read", recorded)
    report = looked(tmp_path, 0, "--fast")
    assert report["read"] == "headers" and report["sound"] and not read
    assert "scales were not read" in run(tmp_path, "--fast").stdout
    looked(tmp_path, 1)
    assert len(read) == len(set(read)) == 21 * 3  # scales, global scales, those of activations
    assert not [name for name in read if name.endswith(("packed", "proj.weight"))]


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    folder = write(tmp_path, BY_NAME["ct-nvfp4"], LLAMA)
    inspect(folder, lambda c: ({}, lambda name: True), progress=lambda *at: calls.append(at))
    assert calls == sorted(calls) and calls[-1][0] == calls[-1][1] > 0
    size = sum(t.nbytes for n, t in tensors_of(BY_NAME["ct-nvfp4"], LLAMA).items()
               if n.endswith("_scale"))  # fmt: skip
    assert calls[-1][1] == size


def test_a_progress_bar_where_stderr_is_a_terminal(tmp_path: Path) -> None:
    write(tmp_path, BY_NAME["ct-nvfp4"], LLAMA)
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "sparkwell", "inspect", str(tmp_path), "--json"]
    shown = b""
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # what Linux says at the end of a terminal
            while part := os.read(ours, 1 << 16):  # unread, it would fill up and stop the writer
                shown += part
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
    os.close(ours)
    assert b"reading scales" in shown and report["sound"] and process.returncode == 0


# ---------------------------------------------------------------- notes


def notes(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["problem"]: one for one in report["findings"] if one["severity"] == "note"}


def test_fused_scales_that_differ_are_a_note(tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME["ct-nvfp4"], LLAMA)
    for name, tensor in tensors.items():
        if name.endswith("weight_global_scale"):
            tensor.fill_(700.0)
    report = looked(write(tmp_path, BY_NAME["ct-nvfp4"], LLAMA, tensors), 0)
    fused = "scales of the whole tensor differ in weights that others fuse"
    assert fused not in notes(report)
    tensors["model.layers.1.self_attn.v_proj.weight_global_scale"].fill_(350.0)
    tensors["model.layers.2.mlp.up_proj.input_global_scale"].fill_(100.0)
    report = looked(write(tmp_path, BY_NAME["ct-nvfp4"], LLAMA, tensors), 0)
    one = notes(report)[fused]
    assert one["tensors"] == [f"{Q}.weight_global_scale"]
    assert one["came"] == "700, 700, 350 for q_proj, k_proj, v_proj"
    inputs = notes(report)["scales of the activations differ in weights that others fuse"]
    assert inputs["tensors"] == ["model.layers.2.mlp.gate_proj.input_global_scale"]
    assert inputs["came"] == "350, 100 for gate_proj, up_proj"


def test_fused_fp8_scales(tmp_path: Path) -> None:
    """One scale for a whole tensor counts; those of rows and of blocks never do."""
    tensors = tensors_of(BY_NAME["modelopt-fp8"], LLAMA)
    report = looked(write(tmp_path, BY_NAME["modelopt-fp8"], LLAMA, tensors), 0)
    one = notes(report)["scales of the whole tensor differ in weights that others fuse"]
    assert one["count"] == 6  # q, k, v and gate, up of 3 layers
    for name in ("modelopt-fp8-channel", "deepseek"):  # where one block is a whole weight
        assert not notes(looked(write(tmp_path, BY_NAME[name], LLAMA), 0))


def test_fused_formats_that_differ(tmp_path: Path) -> None:
    """What runs here and nowhere else is worth a note."""
    nvfp4, fp8 = BY_NAME["modelopt-nvfp4"], BY_NAME["modelopt-fp8"]
    up = {n: t for n, t in tensors_of(fp8, LLAMA).items() if "1.mlp.up_proj" in n}
    tensors = {n: t for n, t in tensors_of(nvfp4, LLAMA).items() if "1.mlp.up_proj" not in n}
    config = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    write(tmp_path, Dialect("mixed", "", config, nvfp4.write), LLAMA, tensors | up)
    one = notes(looked(tmp_path, 0))["formats differ in weights that others fuse"]
    assert one["tensors"] == ["model.layers.1.mlp.gate_proj.weight_scale"]
    assert set(one["came"].split(" and ")) == {"nvfp4, nvfp4", "fp8-rows, fp8-tensor"}
    load_model(tmp_path)


def test_scales_of_a_quantized_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = tensors_of(BY_NAME["modelopt-file"], LLAMA)
    for i in range(3):
        tensors[f"model.layers.{i}.self_attn.k_proj.k_scale"] = torch.tensor(1.0)
        tensors[f"model.layers.{i}.self_attn.v_proj.v_scale"] = torch.tensor(1.0)
    report = looked(write(tmp_path, BY_NAME["modelopt-file"], LLAMA, tensors), 0)
    one = notes(report)["scales of a quantized KV cache are not used"]
    assert one["came"] == "FP8; 6 tensors" and report["kv_cache"] == "FP8"
    tensors = tensors_of(BY_NAME["ct-nvfp4"], LLAMA)
    tensors["model.layers.0.self_attn.k_scale"] = torch.tensor([1.0])
    scheme = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    said = BY_NAME["ct-nvfp4"].config | {"kv_cache_scheme": scheme}
    dialect = Dialect("", "", said, BY_NAME["ct-nvfp4"].write)
    report = looked(write(tmp_path / "ct", dialect, LLAMA, tensors), 0)
    one = notes(report)["scales of a quantized KV cache are not used"]
    assert one["came"] == "float of 8 bits, tensor; 1 tensors"


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_symmetric_gptq_of_the_version_that_it_does_not_name(tmp_path: Path, version: str) -> None:
    """Published: zero points of 8 where checkpoint_format means that 7 stands for 8."""
    dialect = BY_NAME["gptq-sym"]
    sound, other = tmp_path / "sound", tmp_path / "other"
    tensors = tensors_of(dialect, LLAMA)
    want = load_model(write(sound, dialect, LLAMA, tensors))
    nibble = 8 if version == "gptq" else 7
    for name, tensor in tensors.items():
        if name.endswith("qzeros"):
            tensor.view(torch.uint8).fill_(17 * nibble)
    named = Dialect("", "", dialect.config | {"checkpoint_format": version}, dialect.write)
    report = looked(write(other, named, LLAMA, tensors), 0)
    one = notes(report)["zero points are counted in another way than checkpoint_format says"]
    assert (one["count"], one["came"], one["wanted"]) == (
        21,
        f"{nibble} everywhere",
        str(15 - nibble),
    )
    got = load_model(other)
    for a, b in zip(got.layers, want.layers, strict=True):
        assert torch.equal(dequantize(a.attention.o), dequantize(b.attention.o))
    assert "zero points" not in str(notes(looked(sound, 0)))


def test_what_the_activations_were_made_for(tmp_path: Path) -> None:
    report = looked(write(tmp_path, BY_NAME["ct-nvfp4"], LLAMA), 0)
    one = notes(report)["made for NVFP4 activations (W4A4)"]
    assert one["came"] == "21 weights" and "sm_120, sm_121" in one["wanted"]
    assert "W4A16" in one["do"]
    group = BY_NAME["ct-w4a16"].config["config_groups"]["group_0"]
    inputs = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    groups = {"group_0": group | {"input_activations": inputs}}
    report = looked(configured(tmp_path, "ct-w4a16", config_groups=groups), 0)
    assert "W4A16" in notes(report)["made for integer activations"]["do"]


def test_the_verb_imports_torch_only_when_it_runs() -> None:
    code = "import sys, sparkwell.cli.inspect; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
