"""Reading: the bytes of every dtype, in place, with one tensor in memory at a time."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints.checkpoint_files import LLAMA, NAMES, raw, write_file, write_folder, write_shards
from sparkwell.checkpoints.config import read_config
from sparkwell.checkpoints.header import DTYPE_BYTES, read_header
from sparkwell.checkpoints.reader import DTYPES, Checkpoint, TensorInfo
from sparkwell.errors import BadCheckpoint, BadInput


def random_bytes(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Every bit pattern the dtype has: NaN, infinities and subnormals included."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty(0, dtype=dtype).element_size()
    high = 2 if dtype == torch.bool else 256
    count = torch.Size(shape).numel() * size
    data = torch.randint(0, high, (count,), dtype=torch.uint8, generator=generator)
    return data.view(dtype).reshape(shape)


def test_the_tables_of_dtypes_agree() -> None:
    assert DTYPES.keys() == DTYPE_BYTES.keys()
    types = {name: getattr(torch, dtype) for name, dtype in DTYPES.items()}
    assert {v: k for k, v in types.items()} == NAMES
    for name, dtype in types.items():
        assert torch.empty(0, dtype=dtype).element_size() == DTYPE_BYTES[name]


@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.get)
def test_every_dtype_byte_for_byte(tmp_path: Path, dtype: torch.dtype) -> None:
    shapes: list[tuple[int, ...]] = [(3, 5), (), (0, 7), (1,), (2, 0), (2, 3, 4)]
    tensors = {f"t{i}": random_bytes(dtype, shape, i) for i, shape in enumerate(shapes)}
    checkpoint = Checkpoint.open(write_folder(tmp_path, tensors))
    for name, want in tensors.items():
        got = checkpoint.read(name)
        assert (got.dtype, got.shape, raw(got)) == (want.dtype, want.shape, raw(want))
        out = torch.ones_like(want)
        assert checkpoint.read(name, out=out) is out
        assert raw(out) == raw(want)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_the_safetensors_library_writes(tmp_path: Path, data: st.DataObject) -> None:
    shape = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    dtypes = st.sampled_from([d for d in NAMES if d != torch.float8_e8m0fnu])
    names = st.text(min_size=1, max_size=8).filter(lambda s: s != "__metadata__")
    table = data.draw(st.dictionaries(names, st.tuples(dtypes, shape), max_size=5))
    tensors = {n: random_bytes(d, s, i) for i, (n, (d, s)) in enumerate(table.items())}
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, want in tensors.items():
        got = checkpoint.read(name)
        assert (got.dtype, got.shape, raw(got)) == (want.dtype, want.shape, raw(want))


def test_shards(tmp_path: Path) -> None:
    a, b, c = (random_bytes(torch.bfloat16, (4, 6), seed) for seed in range(3))
    shards = {"model-1.safetensors": {"a": a, "b": b}, "model-2.safetensors": {"c": c}}
    checkpoint = Checkpoint.open(write_shards(tmp_path, shards))
    assert checkpoint.folder == tmp_path and checkpoint.config == LLAMA
    assert list(checkpoint.tensors) == ["a", "b", "c"]
    assert "b" in checkpoint and "d" not in checkpoint
    for name, want in (("a", a), ("b", b), ("c", c)):
        assert raw(checkpoint.read(name)) == raw(want)
    info = checkpoint.tensors["b"]
    start = 8 + int.from_bytes((tmp_path / "model-1.safetensors").read_bytes()[:8], "little")
    path = tmp_path / "model-1.safetensors"
    assert info == TensorInfo("b", "BF16", (4, 6), path, start + 48, 48)


def test_an_index_over_a_single_file(tmp_path: Path) -> None:
    write_shards(tmp_path, {"model.safetensors": {"a": torch.ones(2)}})
    assert Checkpoint.open(tmp_path).read("a").tolist() == [1.0, 1.0]


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    write_shards(tmp_path, {"model-1.safetensors": {"a": torch.ones(2)}})
    (tmp_path / "consolidated.safetensors").write_bytes(b"not even a header")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert list(Checkpoint.open(tmp_path).tensors) == ["a"]


def test_out_of_order_entries_and_padding(tmp_path: Path) -> None:
    """Entries may stand in any order, and writers pad the header with spaces."""
    header = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        "empty": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]},
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    text = json.dumps(header).encode() + b"   "
    data = raw(torch.tensor([1.0, 2.0]))
    write_folder(tmp_path, {})
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.read("a").tolist() == [1.0] and checkpoint.read("b").tolist() == [2.0]
    assert checkpoint.read("empty").shape == (0,)


def test_a_file_without_tensors(tmp_path: Path) -> None:
    assert Checkpoint.open(write_folder(tmp_path, {})).tensors == {}


def test_reading_into_a_view_touches_nothing_else(tmp_path: Path) -> None:
    want = random_bytes(torch.int32, (2, 3))
    checkpoint = Checkpoint.open(write_folder(tmp_path, {"a": want}))
    buffer = torch.full((4, 2, 3), 7, dtype=torch.int32)
    checkpoint.read("a", out=buffer[1])
    assert torch.equal(buffer[1], want)
    assert bool((buffer[[0, 2, 3]] == 7).all())


@pytest.mark.parametrize(
    ("out", "came"),
    [
        (torch.empty(3, 2), r"torch.float32 \[3, 2\]"),
        (torch.empty(2, 3, dtype=torch.float16), r"torch.float16 \[2, 3\]"),
        (torch.empty(3, 2).T, r"with strides \(1, 2\)"),
        (torch.empty(2, 3, device="meta"), "on meta"),
    ],
    ids=["shape", "dtype", "strides", "device"],
)
def test_an_out_that_does_not_fit(tmp_path: Path, out: torch.Tensor, came: str) -> None:
    checkpoint = Checkpoint.open(write_folder(tmp_path, {"a": torch.ones(2, 3)}))
    want = r"; want contiguous torch.float32 \[2, 3\] on cpu for a"
    with pytest.raises(BadInput, match=f"read: out is .*{came}.*{want}"):
        checkpoint.read("a", out=out)


def test_reads_larger_than_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkwell.checkpoints.reader.READ_AT_ONCE", 7)
    want = random_bytes(torch.float64, (5,))
    assert raw(Checkpoint.open(write_folder(tmp_path, {"a": want})).read("a")) == raw(want)


def test_offsets_past_four_gigabytes(tmp_path: Path) -> None:
    """A sparse file: 5 GB of nothing, then 8 bytes."""
    gap = 5 << 30
    header = {
        "gap": {"dtype": "U8", "shape": [gap], "data_offsets": [0, gap]},
        "last": {"dtype": "F64", "shape": [1], "data_offsets": [gap, gap + 8]},
    }
    write_folder(tmp_path, {}, header=header)
    path = tmp_path / "model.safetensors"
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size + gap)
        file.write(raw(torch.tensor([0.75], dtype=torch.float64)))
    assert Checkpoint.open(tmp_path).read("last").tolist() == [0.75]


def test_a_header_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_folder(tmp_path, {"a": torch.ones(2)}) / "model.safetensors"
    length = int.from_bytes(path.read_bytes()[:8], "little")
    monkeypatch.setattr("sparkwell.checkpoints.header.HEADER_LIMIT", length)
    assert list(read_header(path)) == ["a"]
    monkeypatch.setattr("sparkwell.checkpoints.header.HEADER_LIMIT", length - 1)
    with pytest.raises(BadCheckpoint, match="header too long"):
        read_header(path)


def test_a_header_read_alone(tmp_path: Path) -> None:
    write_file(tmp_path / "x.safetensors", {"a": torch.zeros(2, dtype=torch.int8)})
    info = read_header(tmp_path / "x.safetensors")["a"]
    assert (info.dtype, info.shape, info.nbytes) == ("I8", (2,), 2)


def test_config_alone(tmp_path: Path) -> None:
    write_folder(tmp_path, {})
    assert read_config(tmp_path) == LLAMA


def test_a_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_folder(tmp_path, {"a": torch.ones(8)}))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(BadCheckpoint, match="file ended inside a tensor") as caught:
        checkpoint.read("a")
    assert "came    20 bytes" in str(caught.value)
    assert f"wanted  32 bytes from byte {checkpoint.tensors['a'].offset}" in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_peak_memory_is_one_tensor(tmp_path: Path) -> None:
    """Streaming tensors of 33 to 37 MiB costs the largest, +10 %, over the baseline.

    Above 32 MiB, where glibc maps every allocation by itself: below it keeps freed memory.
    """
    sizes = [(33 << 20) + (i % 5) * (1 << 20) for i in range(7)]
    tensors = {f"t{i}": torch.zeros(size, dtype=torch.uint8) for i, size in enumerate(sizes)}
    write_folder(tmp_path, tensors)
    # Not getrusage: its peak is inherited from the process that started this one.
    script = """
        import re, sys
        from pathlib import Path
        from sparkwell.checkpoints.reader import Checkpoint

        def peak() -> int:
            status = Path("/proc/self/status").read_text()
            return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024

        checkpoint = Checkpoint.open(Path(sys.argv[1]))
        checkpoint.read(next(iter(checkpoint.tensors)))  # the first read loads numpy's code
        Path("/proc/self/clear_refs").write_text("5")  # the peak falls back to what is in use now
        before, total = peak(), 0
        for name in checkpoint.tensors:
            total += checkpoint.read(name).numel()
        print(total, peak() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    total, grown = (int(word) for word in done.stdout.split())
    assert total == sum(sizes)
    assert 0 < grown <= 1.1 * max(sizes), (
        f"{grown} bytes over the baseline, want {max(sizes)} + 10 %"
    )
