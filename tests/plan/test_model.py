"""What a name becomes: a folder's headers, a config alone, the built-in table, the Hub."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("compressed_tensors")

import huggingface_hub
from huggingface_hub import errors

from checkpoints.checkpoint_files import write_file
from checkpoints.dialects import BY_NAME, DIALECTS, Dialect
from cli.inspected import LLAMA, MOE, plain_tensors, tensors_of, write
from sparkwell.errors import BadCheckpoint
from sparkwell.plan.model import AS_STORED, find_model
from sparkwell.plan.models import MODELS
from sparkwell.plan.schemes import BF16

KINDS = {
    "fp8-block": "Fp8Block", "fp8-rows": "Fp8Rows", "nvfp4": "Nvfp4", "mxfp4": "Mxfp4",
    "int4": "Int4Group",
}  # fmt: skip


def folder(path: Path, config: dict[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


# ---------------------------------------------------------------- names


def test_built_in() -> None:
    model = find_model("GLM-5.1")
    assert (model.name, model.source, model.stored) == ("glm-5", "built-in table", None)
    assert model.parameters == 743_911_218_432 and model.notes == ()


def test_packaged() -> None:
    model = find_model("bard")
    assert model.source == "folder: headers" and model.stored is None


@pytest.mark.parametrize("name", ["", "no such model", "../up", "/absent/folder", "a/b/c"])
def test_nothing_has_that_name(name: str) -> None:
    with pytest.raises(BadCheckpoint, match=r"wanted  a folder with config.json, a Hub id"):
        find_model(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BadCheckpoint, match="came    a file"):
        find_model(str(tmp_path / "model.safetensors"))


def test_known_but_not_supported() -> None:
    with pytest.raises(BadCheckpoint, match="known but not supported yet: hyper-connections"):
        find_model("deepseek-v4-flash")


# ---------------------------------------------------------------- folders


def test_a_config_alone(tmp_path: Path) -> None:
    model = find_model(str(folder(tmp_path, MODELS["llama-3.1-8b"])))
    assert model.source == "folder: config" and model.stored is None
    assert model.parameters == 8_030_261_248


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"config\.json"):
        find_model(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9), ("n_routed_experts", 10**8), ("hidden_size", 10**400),
        ("vocab_size", -(10**15)), ("rope_theta", float("nan")), ("hidden_size", float("inf")),
    ],
)  # fmt: skip
def test_numbers_that_no_model_has(tmp_path: Path, key: str, value: float) -> None:
    """A config is somebody else's file: nothing is made of such sizes."""
    path = folder(tmp_path, MODELS["glm-5.2"] | {key: value})
    with pytest.raises(BadCheckpoint, match=f"(?s)a number that no model has.*came    {key} = "):
        find_model(str(path))


def test_plain_weights_can_have_any_scheme(tmp_path: Path) -> None:
    write_file(folder(tmp_path, LLAMA) / "model.safetensors", plain_tensors(LLAMA))
    model = find_model(str(tmp_path))
    assert model.source == "folder: headers" and model.stored is None


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    tensors = plain_tensors(LLAMA)
    del tensors["model.layers.1.self_attn.o_proj.weight"]
    write_file(folder(tmp_path, LLAMA) / "model.safetensors", tensors)
    with pytest.raises(BadCheckpoint, match=r"layers\.1\.self_attn\.o_proj\.weight"):
        find_model(str(tmp_path))


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_quantized_weights_by_their_headers(tmp_path: Path, dialect: Dialect) -> None:
    model = find_model(str(write(tmp_path, dialect, LLAMA)))
    assert model.source == "folder: headers" and model.stored is not None
    assert model.stored.name == AS_STORED
    layers = {part.name: part for part in model.parts if part.group in ("attention", "dense")}
    for part in layers.values():
        kind = model.stored.format(part)
        assert kind.kind == KINDS[dialect.kind], part.name
        assert kind.activations == dialect.activations
    held = tensors_of(dialect, LLAMA)
    of_layers = [t.nbytes for name, t in held.items() if ".self_attn." in name or ".mlp." in name]
    counted = sum(model.stored.nbytes(part) for part in layers.values())
    assert 0 <= sum(of_layers) - counted <= 16 * len(of_layers)  # static scales nobody reads


def test_weights_that_no_layer_needs_may_be_broken(tmp_path: Path) -> None:
    """A multi-token-prediction layer, as published files have one behind the last."""
    dialect = BY_NAME["deepseek"]
    tensors = tensors_of(dialect, LLAMA)
    name = "model.layers.3.mlp.up_proj.weight_scale_inv"  # without its weight
    tensors[name] = tensors["model.layers.2.mlp.up_proj.weight_scale_inv"].clone()
    path = folder(tmp_path, LLAMA | {"quantization_config": dialect.config})
    write_file(path / "model.safetensors", tensors)
    assert find_model(str(path)).stored is not None
    tensors[name.replace(".3.", ".1.")] = torch.ones(1, 1)
    write_file(path / "model.safetensors", tensors)
    with pytest.raises(BadCheckpoint, match="scales of a wrong shape"):
        find_model(str(path))


def test_layers_of_two_formats_count_as_the_more_common(tmp_path: Path) -> None:
    dialect, name = BY_NAME["deepseek"], "model.layers.0.self_attn.o_proj.weight"
    tensors = tensors_of(dialect, LLAMA)
    del tensors[f"{name}_scale_inv"]
    tensors[name] = plain_tensors(LLAMA)[name]
    model = find_model(str(write(tmp_path, dialect, LLAMA, tensors)))
    part = next(part for part in model.parts if part.name.endswith("o_proj.weight"))
    assert model.stored is not None
    assert model.stored.format(part).kind == "Fp8Block"
    assert model.stored.nbytes(part) == 2 * 128 * 128 + 2 * (128 * 128 + 4)
    assert model.notes == (
        "model.layers.{layer}.self_attn.o_proj.weight: 2 Fp8Block, 1 plain; speed is that of the "
        "most common format",
    )


def test_what_is_served_in_16_bits_counts_so(tmp_path: Path) -> None:
    """kv_b is cut into heads: it is dequantized when it is loaded."""
    config = MODELS["deepseek-v3"] | {
        "num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 2, "q_lora_rank": 128,
        "intermediate_size": 256, "first_k_dense_replace": 2, "vocab_size": 64,
    }  # fmt: skip
    dialect, tensors = BY_NAME["deepseek"], plain_tensors(config)
    for name in [name for name in tensors if "kv_b_proj" in name or "o_proj" in name]:
        parts, _ = dialect.write(tensors.pop(name))
        tensors |= {f"{name.removesuffix('.weight')}.{leaf}": x for leaf, x in parts.items()}
    model = find_model(str(write(tmp_path, dialect, config, tensors)))
    by_name = {part.name.split(".")[-2]: part for part in model.parts}
    assert model.stored is not None
    kv_b, o = by_name["kv_b_proj"], by_name["o_proj"]
    assert model.stored.format(kv_b) is BF16 and model.stored.format(o).kind == "Fp8Block"
    assert model.stored.nbytes(kv_b) == 2 * kv_b.parameters
    assert model.stored.nbytes(o) == 2 * (256 * 256 + 4 * 4)


def test_experts_alone_are_quantized(tmp_path: Path) -> None:
    dialect = BY_NAME["ct-nvfp4a16"]
    model = find_model(str(write(tmp_path, dialect, MOE)))
    assert model.stored is not None
    kinds = {part.group: model.stored.format(part) for part in model.parts}
    assert kinds["experts"].kind == KINDS[dialect.kind]
    assert kinds["router"] is BF16 and kinds["embedding"] is BF16


# ---------------------------------------------------------------- formats by the config


def quantized(**fields: Any) -> dict[str, Any]:
    return MODELS["glm-5.2"] | {"quantization_config": fields}


def kinds_of(path: Path, config: dict[str, Any]) -> dict[str, str]:
    model = find_model(str(folder(path, config)))
    assert model.stored is not None and "by the config alone" in model.notes[0]
    return {part.group: model.stored.format(part).made_for for part in model.parts}


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}


def test_deepseek_fp8_by_its_config(tmp_path: Path) -> None:
    kinds = kinds_of(tmp_path, quantized(**FP8))
    assert {kinds[g] for g in ("attention", "indexer", "dense", "shared", "experts")} == {"w8a8"}
    assert {kinds[g] for g in ("embedding", "head", "router", "absorbed")} == {"w16a16"}


def test_modules_left_out_stay_plain(tmp_path: Path) -> None:
    """As NVIDIA's GLM-5.2: only the routed experts are NVFP4."""
    ignore = ["lm_head", "*self_attn*", "*shared_experts*"]
    ignore += [f"model.layers.{i}.*" for i in (0, 1, 2)]
    kinds = kinds_of(tmp_path, quantized(**MODELOPT, ignore=ignore))
    assert kinds["experts"] == "w4a4"
    assert {kinds[g] for g in ("attention", "indexer", "dense", "shared")} == {"w16a16"}
    model = find_model(str(tmp_path))
    total = sum(model.stored.nbytes(part) for part in model.parts)  # type: ignore[union-attr]
    assert total / 1e9 == pytest.approx(444.9, rel=0.01)


@pytest.mark.parametrize(
    ("entry", "left_out"),
    [
        ("model.layers.4", False),
        ("self_attn", True),
        ("re:.*self_attn.*", True),
        ("re:.*mlp.*", False),
        ("re:(", False),
        ("*.o_proj", False),
        ("model", True),
    ],
)
def test_lists_of_what_stays_plain(tmp_path: Path, entry: str, left_out: bool) -> None:
    model = find_model(str(folder(tmp_path, quantized(**MODELOPT, ignore=[entry]))))
    part = next(part for part in model.parts if part.name.endswith("q_b_proj.weight"))
    assert model.stored is not None
    assert (model.stored.format(part) is BF16) == left_out


def test_compressed_tensors_by_its_config(tmp_path: Path) -> None:
    weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    config = quantized(quant_method="compressed-tensors", config_groups={"group_0": group})
    assert kinds_of(tmp_path, config)["attention"] == "w4a16"


def test_formats_nobody_reads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"(?s)came    quant_method = 'bitsandbytes'.*awq"):
        find_model(str(folder(tmp_path, quantized(quant_method="bitsandbytes"))))
    with pytest.raises(BadCheckpoint, match="weight_block_size"):
        find_model(str(folder(tmp_path, quantized(quant_method="fp8", weight_block_size=[1, 1]))))


def test_a_config_that_quantizes_nothing(tmp_path: Path) -> None:
    group = {"targets": ["Linear"], "weights": None}
    config = quantized(quant_method="compressed-tensors", config_groups={"group_0": group})
    assert find_model(str(folder(tmp_path, config))).stored is None


# ---------------------------------------------------------------- the Hub


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[Any]:
    asked: list[Any] = []

    def download(repo: str, file: str, *, revision: str | None = None) -> str:
        asked.append((repo, file, revision))
        if isinstance(answer, BaseException):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_of_the_hub_only_the_config_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder(tmp_path, MODELS["qwen3-8b"]) / "config.json"
    asked = hub(monkeypatch, file)
    model = find_model("some/model@v1")
    assert asked == [("some/model", "config.json", "v1")]
    assert (model.name, model.source) == ("some/model@v1", "Hub: config")
    assert model.parameters == pytest.approx(8.19e9, rel=1e-3)


def test_offline_says_what_else_can_be_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, errors.LocalEntryNotFoundError("no connection\nmore"))
    with pytest.raises(
        BadCheckpoint,
        match=r"(?s)Hub cannot be reached.*LocalEntryNotFoundError: no connection\n.*"
        r"plan for glm-4.7-flash, whose config is built in; or unset HF_HUB_OFFLINE",
    ):
        find_model("zai-org/GLM-4.7-Flash")
    with pytest.raises(BadCheckpoint, match="do      give a folder; or unset"):
        find_model("some/model")


def test_what_the_hub_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, errors.EntryNotFoundError("404: no config.json"))
    with pytest.raises(BadCheckpoint, match=r"(?s)config.json of some/model@x cannot be had.*404"):
        find_model("some/model@x")
    hub(monkeypatch, PermissionError("no place for the cache"))
    with pytest.raises(BadCheckpoint, match=r"PermissionError: no place for the cache"):
        find_model("some/model")
