"""Every way we know for a checkpoint to be broken, and the whole message that each one gets."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.checkpoint_files import (
    FP8,
    LLAMA,
    assert_says,
    header_of,
    write_file,
    write_folder,
    write_raw,
    write_shards,
)
from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.checkpoints.schemes import check_tensors, read_weight
from sparkwell.checkpoints.survey import survey
from sparkwell.errors import BadCheckpoint
from sparkwell.formats.fp8 import quantize_fp8_block

AGAIN = "download the file again: it is damaged or cut off"
TWO = {"a": torch.ones(2, 3), "b": torch.ones(4)}
VERSIONS = "download index and files again; they may be of different versions"
SUPPORTED = "no quantization, DeepSeek's FP8, compressed-tensors (FP8, NVFP4, MXFP4, INT4), "


def refusal(folder: Path) -> BadCheckpoint:
    with pytest.raises(BadCheckpoint) as caught:
        Checkpoint.open(folder)
    return caught.value


def fp8(n: int = 200, k: int = 130) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    block = quantize_fp8_block(torch.randn(n, k))
    return {"w.weight": block.values, "w.weight_scale_inv": block.scales}


# ---------------------------------------------------------------- config.json and the folder


def test_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "nowhere"
    assert_says(
        refusal(path),
        "no such folder",
        file=path / "config.json",
        came="nothing",
        wanted="a folder with config.json, *.safetensors",
        do="give the folder that holds config.json, or a Hub id owner/name",
    )


def test_no_config(tmp_path: Path) -> None:
    write_folder(tmp_path, TWO)
    (tmp_path / "config.json").unlink()
    assert_says(
        refusal(tmp_path),
        "no config.json in the model's folder",
        file=tmp_path / "config.json",
        came="1 other files (model.safetensors)",
        wanted="a folder with config.json",
        do="give the folder that holds config.json",
    )


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"<html>", b"[" * 100000])
def test_config_is_no_json(tmp_path: Path, content: bytes) -> None:
    write_folder(tmp_path, TWO)
    (tmp_path / "config.json").write_bytes(content)
    assert_says(
        refusal(tmp_path),
        "config.json is not valid JSON",
        file=tmp_path / "config.json",
        came=f"{len(content)} bytes that do not parse: ",
        wanted="one JSON object {...} in UTF-8",
        do="download the file again; it may be cut off",
    )


def test_config_is_no_object(tmp_path: Path) -> None:
    write_folder(tmp_path, TWO)
    (tmp_path / "config.json").write_text("[1]")
    assert_says(
        refusal(tmp_path),
        "config.json is not a JSON object",
        file=tmp_path / "config.json",
        came="a JSON list",
        wanted="one JSON object {...}",
        do="download the file again",
    )


@pytest.mark.parametrize(
    ("files", "problem", "came", "do"),
    [
        ([], "no safetensors weights in the folder", "config.json", "download the weights"),
        (
            ["pytorch_model.bin"],
            "no safetensors weights in the folder",
            "pytorch_model.bin",
            "take the model's safetensors version, or convert it: load it in Transformers and call",
        ),
        (
            ["b.gguf", "a.pt"],
            "no safetensors weights in the folder",
            "a.pt, b.gguf",
            "take the model's safetensors version",
        ),
        (
            [f"model-{i}.safetensors" for i in range(6)],
            "no model.safetensors and no index",
            "model-0.safetensors, model-1.safetensors, model-2.safetensors, model-3.safetensors "
            "and 2 more",
            "add model.safetensors.index.json, or name a single file model.safetensors",
        ),
    ],
    ids=["nothing", "bin", "gguf", "loose shards"],
)
def test_no_safetensors(tmp_path: Path, files: list[str], problem: str, came: str, do: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    for name in files:
        (tmp_path / name).touch()
    wanted = "model.safetensors, or model.safetensors.index.json and the files it names"
    assert_says(refusal(tmp_path), problem, file=tmp_path, came=came, wanted=wanted, do=do)


# ---------------------------------------------------------------- one file


def test_file_cut_off(tmp_path: Path) -> None:
    path = write_folder(tmp_path, TWO) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert_says(
        refusal(tmp_path),
        "file is cut off",
        file=path,
        came=f"{len(whole) - 1} bytes",
        wanted=f"{len(whole)} bytes: header and all tensors",
        do=AGAIN,
    )
    path.write_bytes(whole + b"0")
    assert_says(
        refusal(tmp_path),
        "file is longer than its header says",
        file=path,
        came=f"{len(whole) + 1} bytes",
        wanted=f"{len(whole)} bytes",
        do=AGAIN,
    )


@pytest.mark.parametrize("content", [b"", b"1234567", b"\x03\0\0\0\0\0\0\0{}"])
def test_header_beyond_the_file(tmp_path: Path, content: bytes) -> None:
    path = write_folder(tmp_path, TWO) / "model.safetensors"
    path.write_bytes(content)
    claimed = int.from_bytes(content[:8], "little")
    problem = "header too long" if claimed > 100_000_000 else "header longer than the file"
    assert_says(
        refusal(tmp_path),
        problem,
        file=path,
        came=f"{len(content)} bytes, of which the header claims 8 + {claimed}",
        wanted="8 bytes of length, then a header of at most 100000000 bytes",
        do=AGAIN + ", or not a safetensors file at all",
    )


def test_header_of_absurd_length(tmp_path: Path) -> None:
    path = write_folder(tmp_path, TWO) / "model.safetensors"
    write_raw(path, b"{}", b"", length=100_000_001)
    assert_says(
        refusal(tmp_path),
        "header too long",
        file=path,
        came="10 bytes, of which the header claims 8 + 100000001",
        wanted="8 bytes of length, then a header of at most 100000000 bytes",
        do=AGAIN,
    )


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b'{"a": ', "Expecting value"),
        (b"\xff\xff", "'utf-8' codec can't decode"),
        (b"[]", "a JSON list, not an object"),
        (b"[" * 100000, ""),
        (b'{"a": {}, "a": {}}', "key 'a' stands twice"),
    ],
    ids=["cut", "utf-8", "list", "deep", "twice"],
)
def test_header_is_no_json_object(tmp_path: Path, header: bytes, why: str) -> None:
    path = write_folder(tmp_path, TWO) / "model.safetensors"
    write_raw(path, header, b"")
    assert_says(
        refusal(tmp_path),
        "header is not a valid JSON object",
        file=path,
        came=f"{len(header)} bytes of header: {why}",
        wanted='{"name": {"dtype": ..., "shape": [...], "data_offsets": [...]}, ...}',
        do=AGAIN,
    )


@pytest.mark.parametrize(
    "entry",
    [
        7,
        {},
        {"dtype": 1, "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 2, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]},
        {"dtype": "F32", "shape": [1]},
    ],
)
def test_header_entry_malformed(tmp_path: Path, entry: Any) -> None:
    folder = write_folder(tmp_path, {"a": torch.ones(1)}, header={"a": entry})
    assert_says(
        refusal(folder),
        "header entry is malformed",
        file=folder / "model.safetensors",
        tensor="a",
        came=repr(entry)[:40],
        wanted='{"dtype": text, "shape": [sizes], "data_offsets": [begin, end]}',
        do=AGAIN,
    )


def test_unknown_dtype(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}
    folder = write_folder(tmp_path, {"a": torch.ones(1)}, header=header)
    assert_says(
        refusal(folder),
        "tensor of a dtype that is not supported",
        file=folder / "model.safetensors",
        tensor="a",
        came="F4",
        wanted="one of BOOL, U8, I8, F8_E4M3",
        do="choose another version of this model",
    )


def test_size_against_shape(tmp_path: Path) -> None:
    header = {"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 16]}}
    folder = write_folder(tmp_path, {"a": torch.ones(4)}, header=header)
    assert_says(
        refusal(folder),
        "tensor's size in the file does not fit its shape",
        file=folder / "model.safetensors",
        tensor="a",
        came="data_offsets [0, 16], 16 bytes",
        wanted="12 bytes for BF16 [2, 3]",
        do=AGAIN,
    )


@pytest.mark.parametrize(
    ("begin", "problem"), [(20, "tensors overlap"), (28, "gap between tensors")]
)
def test_offsets_that_do_not_tile(tmp_path: Path, begin: int, problem: str) -> None:
    header = header_of(TWO)
    header["b"]["data_offsets"] = [begin, begin + 16]
    folder = write_folder(tmp_path, TWO, header=header)
    assert_says(
        refusal(folder),
        problem,
        file=folder / "model.safetensors",
        tensor="b",
        came=f"data begins at byte {begin}",
        wanted="byte 24, where the tensor before it ends",
        do=AGAIN,
    )


# ---------------------------------------------------------------- index and shards

SHARDS = {"one.safetensors": {"a": torch.ones(1)}, "two.safetensors": {"b": torch.ones(1)}}
RIGHT = {"a": "one.safetensors", "b": "two.safetensors"}


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 1}])
def test_index_without_a_map(tmp_path: Path, weight_map: Any) -> None:
    write_shards(tmp_path, SHARDS)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_says(
        refusal(tmp_path),
        "index without a weight_map",
        file=index,
        came=f"weight_map = {weight_map!r}",
        wanted='"weight_map": {"tensor": "file.safetensors", ...}',
        do="download the index again",
    )


def test_index_is_no_json(tmp_path: Path) -> None:
    write_shards(tmp_path, SHARDS)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert str(refusal(tmp_path)).startswith(
        "checkpoint: model.safetensors.index.json is not valid JSON\n"
    )


def test_absent_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, SHARDS)
    (tmp_path / "two.safetensors").unlink()
    assert_says(
        refusal(tmp_path),
        "index names absent files",
        file=tmp_path / "model.safetensors.index.json",
        came="1 of 2 files: two.safetensors",
        wanted="every file present",
        do="download the missing files; the download may have been interrupted",
    )


def test_shard_outside_the_folder(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "model", SHARDS, RIGHT | {"b": "../two.safetensors"})
    write_file(tmp_path / "two.safetensors", SHARDS["two.safetensors"])
    assert_says(
        refusal(folder),
        "index names files outside its folder",
        file=folder / "model.safetensors.index.json",
        came="1 of 2 files: ../two.safetensors",
        wanted="plain names of files in the same folder",
        do="download the missing files",
    )


def test_tensor_in_another_shard_than_the_index_says(tmp_path: Path) -> None:
    swapped = {"a": "two.safetensors", "b": "one.safetensors"}
    write_shards(tmp_path, SHARDS, swapped)
    assert_says(
        refusal(tmp_path),
        "index and files disagree on where a tensor lies",
        file=tmp_path / "one.safetensors",
        tensor="a",
        came="it is in one.safetensors",
        wanted="two.safetensors, says model.safetensors.index.json",
        do=VERSIONS,
    )


def test_tensor_that_the_index_does_not_name(tmp_path: Path) -> None:
    shards = SHARDS | {"two.safetensors": {"b": torch.ones(1), "c": torch.ones(1)}}
    write_shards(tmp_path, shards, RIGHT)
    assert_says(
        refusal(tmp_path),
        "index and files disagree on where a tensor lies",
        file=tmp_path / "two.safetensors",
        tensor="c",
        came="it is in two.safetensors",
        wanted="nowhere, says model.safetensors.index.json",
        do=VERSIONS,
    )


def test_tensor_that_no_shard_holds(tmp_path: Path) -> None:
    extra = {f"x{i}": "two.safetensors" for i in range(6)}
    write_shards(tmp_path, SHARDS, RIGHT | extra)
    assert_says(
        refusal(tmp_path),
        "index names tensors that its files do not hold",
        file=tmp_path / "two.safetensors",
        tensor="x0, x1, x2, x3 and 2 more",
        came="2 of the 8 tensors in model.safetensors.index.json",
        wanted="all of them",
        do=VERSIONS,
    )


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    shards = SHARDS | {"two.safetensors": {"b": torch.ones(1), "a": torch.ones(1)}}
    write_shards(tmp_path, shards, RIGHT)
    assert_says(
        refusal(tmp_path),
        "tensor stands in two files",
        file=tmp_path / "two.safetensors",
        tensor="a",
        came="one.safetensors and two.safetensors",
        wanted="one.safetensors only",
        do=VERSIONS,
    )


def test_two_sets_of_weights(tmp_path: Path) -> None:
    write_shards(tmp_path, SHARDS)
    write_file(tmp_path / "model.safetensors", SHARDS["one.safetensors"])
    assert_says(
        refusal(tmp_path),
        "two sets of weights in one folder",
        file=tmp_path / "model.safetensors.index.json",
        came="model.safetensors beside an index that does not name it",
        wanted="model.safetensors, or model.safetensors.index.json and its files",
        do="remove the set that you do not want",
    )


# ---------------------------------------------------------------- names and shapes

EXPECTED = {"a": (2, 3), "b": (4,), "c": (5, 6)}


def mismatch(checkpoint: Checkpoint, expected: dict[str, tuple[int, ...]]) -> BadCheckpoint:
    with pytest.raises(BadCheckpoint) as caught:
        check_tensors(checkpoint, expected, ignored=lambda name: name == "fine")
    return caught.value


def test_missing_tensor(tmp_path: Path) -> None:
    assert_says(
        mismatch(Checkpoint.open(write_folder(tmp_path, TWO)), EXPECTED),
        "tensors 1 missing",
        file=tmp_path / "model.safetensors",
        tensor="c",
        came="absent",
        wanted="[5, 6]",
        do="check that config.json and the weights belong to the same model and version",
    )


def test_surplus_tensor(tmp_path: Path) -> None:
    tensors = TWO | {"d": torch.ones(7), "fine": torch.ones(1)}
    checkpoint = Checkpoint.open(write_folder(tmp_path, tensors))
    assert_says(
        mismatch(checkpoint, {"a": (2, 3), "b": (4,)}),
        "tensors 1 surplus",
        file=tmp_path / "model.safetensors",
        tensor="d",
        came="[7]",
        wanted="absent",
        do="check that config.json and the weights",
    )


def test_misshaped_tensor(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_folder(tmp_path, TWO))
    assert_says(
        mismatch(checkpoint, {"a": (3, 2), "b": (4,)}),
        "tensors 1 of another shape",
        file=tmp_path / "model.safetensors",
        tensor="a",
        came="[2, 3]",
        wanted="[3, 2]",
        do="check that config.json and the weights",
    )


def test_all_at_once_in_one_error(tmp_path: Path) -> None:
    write_shards(tmp_path, {"one.safetensors": TWO | {"x": torch.ones(1), "y": torch.ones(1)}})
    expected = EXPECTED | {"a": (6,), "d": (1,), "e": ()}
    assert_says(
        mismatch(Checkpoint.open(tmp_path), expected),
        "tensors 3 missing, 2 surplus, 1 of another shape",
        file=tmp_path / "model.safetensors.index.json",
        tensor="a, c, d, e and 2 more",
        came="[2, 3], absent, absent, absent",
        wanted="[6], [5, 6], [1], []",
        do="check that config.json and the weights",
    )


# ---------------------------------------------------------------- schemes


def scheme_refusal(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> BadCheckpoint:
    checkpoint = Checkpoint.open(write_folder(folder, tensors, LLAMA | config))
    with pytest.raises(BadCheckpoint) as caught:
        survey(checkpoint).check()
    return caught.value


@pytest.mark.parametrize(
    ("declared", "came"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method = 'bitsandbytes'"),
        ({"load_in_4bit": True}, "quant_method = None"),
        (
            {"quant_method": "fp8", "weight_block_size": [1, 128]},
            "quant_method = 'fp8' with weight_block_size = [1, 128]",
        ),
        (FP8 | {"fmt": "e5m2"}, "FP8 of fmt 'e5m2'"),
        (FP8 | {"activation_scheme": "static"}, "FP8 with activation_scheme = 'static'"),
    ],
)
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_unsupported_scheme(tmp_path: Path, key: str, declared: dict[str, Any], came: str) -> None:
    assert_says(
        scheme_refusal(tmp_path, fp8(), **{key: declared}),
        "quantization scheme is not supported",
        file=tmp_path / "config.json",
        came=f"quantization_config: {came}",
        wanted=SUPPORTED,
        do="choose the model's BF16 version, or one quantized in a format named above",
    )


@pytest.mark.parametrize(
    "name",
    [
        "w.weight_scale_inv",
        "w.qweight",
        "w.weight_packed",
        "w.weight_scale_2",
        "w.weight_scale",
        "w.gate_up_proj_blocks",
        "w.weight.absmax",
    ],
)
def test_quantized_tensors_that_config_does_not_mention(tmp_path: Path, name: str) -> None:
    assert_says(
        scheme_refusal(tmp_path, {name: torch.ones(2, 3)}),
        "tensors are quantized, but config.json has no quantization_config",
        file=tmp_path / "model.safetensors",
        tensor=name,
        came="F32 [2, 3]",
        wanted="plain weights, or a quantization_config",
        do="take config.json from the repository that the weights came from",
    )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_narrow_tensors_that_config_does_not_mention(tmp_path: Path, dtype: torch.dtype) -> None:
    error = scheme_refusal(tmp_path, {"a.weight": torch.ones(2).to(dtype)})
    assert "tensors are quantized, but config.json has no" in str(error)


def test_fp8_that_no_tensor_has(tmp_path: Path) -> None:
    assert_says(
        scheme_refusal(tmp_path, TWO, quantization_config=FP8),
        "config.json says that weights are quantized, but no tensor is",
        file=tmp_path / "config.json",
        came="2 tensors, none of fp8",
        wanted="quantized weights with their scales",
        do="remove quantization_config from config.json if the weights were dequantized",
    )


# What is wrong between a weight and its scales is found in the headers, and again on reading.
PAIRS = [
    (
        {"w.weight": None},
        "scales without an FP8 weight",
        "w.weight_scale_inv",
        "no such weight",
        "F8_E4M3 weight",
    ),
    (
        {"w.weight": torch.ones(200, 130)},
        "scales without an FP8 weight",
        "w.weight_scale_inv",
        "weight is F32",
        "F8_E4M3 weight",
    ),
    (
        {"w.weight_scale_inv": None},
        "FP8 weight without scales",
        "w.weight",
        "F8_E4M3 [200, 130] and no w.weight_scale_inv",
        "w.weight_scale_inv or w.weight_scale",
    ),
    (
        {"w.weight_scale_inv": torch.ones(1, 2)},
        "scales of a wrong shape",
        "w.weight_scale_inv",
        "[1, 2]",
        "[2, 2] for w.weight F8_E4M3 [200, 130]",
    ),
    (
        {"w.weight_scale_inv": torch.ones(2, 2, dtype=torch.float16)},
        "scales of a wrong dtype",
        "w.weight_scale_inv",
        "F16",
        "F32 or BF16 or F8_E8M0",
    ),
    (
        {"w.weight": torch.ones(200).to(torch.float8_e4m3fn)},
        "FP8 weight is no matrix",
        "w.weight",
        "[200]",
        "[n, k]",
    ),
]


def with_changes(change: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    return {name: t for name, t in (fp8() | change).items() if t is not None}


@pytest.mark.parametrize(("change", "problem", "tensor", "came", "wanted"), PAIRS)
def test_weights_and_scales_that_do_not_fit(
    tmp_path: Path,
    change: dict[str, torch.Tensor | None],
    problem: str,
    tensor: str,
    came: str,
    wanted: str,
) -> None:
    expect = {
        "file": tmp_path / "model.safetensors",
        "tensor": tensor,
        "came": came,
        "wanted": wanted,
        "do": "download the files again; weights and scales may be of different versions",
    }
    good = {"v" + name[1:]: tensor for name, tensor in fp8().items()}
    tensors = good | with_changes(change)
    error = scheme_refusal(tmp_path, tensors, quantization_config=FP8)
    assert_says(error, problem, **expect)
    if "w.weight" in tensors:
        shape = tuple(tensors["w.weight"].shape)
        with pytest.raises(BadCheckpoint) as caught:
            read_weight(Checkpoint.open(tmp_path), "w.weight", shape)
        assert_says(caught.value, problem, **expect)


# ---------------------------------------------------------------- reading one weight


def weight_refusal(
    folder: Path, tensors: dict[str, torch.Tensor], name: str, shape: tuple[int, ...]
) -> BadCheckpoint:
    config = {"quantization_config": FP8} if f"{name}_scale_inv" in tensors else {}
    checkpoint = Checkpoint.open(write_folder(folder, tensors, LLAMA | config))
    with pytest.raises(BadCheckpoint) as caught:
        read_weight(checkpoint, name, shape)
    return caught.value


@pytest.mark.parametrize(
    ("value", "shown"),
    [(float("nan"), "nan"), (-0.5, "-0.5"), (float("inf"), "inf"), (float("-inf"), "-inf")],
)
def test_scales_that_are_no_scales(tmp_path: Path, value: float, shown: str) -> None:
    tensors = fp8()
    tensors["w.weight_scale_inv"][1, 0] = value
    tensors["w.weight_scale_inv"][1, 1] = value
    assert_says(
        weight_refusal(tmp_path, tensors, "w.weight", (200, 130)),
        "scales are not numbers of at least 0",
        file=tmp_path / "model.safetensors",
        tensor="w.weight_scale_inv",
        came=f"{shown} at [1, 0], one of 2 such scales",
        wanted="finite, >= 0",
        do="download the files again",
    )


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.int32, "I32"), (torch.bool, "BOOL"), (torch.float8_e5m2, "F8_E5M2")],
)
def test_weight_of_a_wrong_dtype(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    assert_says(
        weight_refusal(tmp_path, {"a": torch.ones(2).to(dtype)}, "a", (2,)),
        "tensor of a wrong dtype",
        file=tmp_path / "model.safetensors",
        tensor="a",
        came=name,
        wanted="BF16 or F16 or F32 or F64",
        do="download the files again",
    )


@pytest.mark.parametrize("tensors", [{"w.weight": torch.ones(200, 130)}, fp8()])
def test_weight_of_a_wrong_shape(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    assert_says(
        weight_refusal(tmp_path, tensors, "w.weight", (130, 200)),
        "tensor of a wrong shape",
        file=tmp_path / "model.safetensors",
        tensor="w.weight",
        came="[200, 130]",
        wanted="[130, 200]",
        do="download the files again",
    )


def test_weight_that_is_absent(tmp_path: Path) -> None:
    assert_says(
        weight_refusal(tmp_path, TWO, "z", (1,)),
        "no such tensor",
        file=tmp_path,
        tensor="z",
        came="2 tensors, none of this name",
        wanted="z",
        do="check that config.json and the weights belong to the same model",
    )
