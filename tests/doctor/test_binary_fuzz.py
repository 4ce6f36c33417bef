"""Mutated and random bytes for some seconds; `python tests/doctor/fuzz.py` goes on for longer."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fatbins
from doctor import fuzz
from sparkwell.doctor.binary.unpack import lz4
from sparkwell.doctor.binary.view import Damage, View

SEEDS = fuzz.seeds()
LOOSE = settings(
    max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def test_the_seeds_themselves_are_read() -> None:
    files = [fuzz.check(seed) for seed in SEEDS]
    assert all(file is not None and file.images and not file.problems for file in files)
    assert not any(image.problems for file in files if file for image in file.images)


def test_mutated_files_for_some_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tried, unreadable, with_images, slowest = fuzz.run(8, seed=7)
    assert tried > 300 and unreadable > 10 and with_images > 100 and slowest < fuzz.SLOW


@LOOSE
@given(st.data())
def test_any_field_of_any_seed(data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(SEEDS))
    out = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(out) - 8))
        width = data.draw(st.sampled_from([1, 2, 4, 8]))
        value = data.draw(st.sampled_from(fuzz.NASTY) | st.integers(0, (1 << 64) - 1))
        out[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    fuzz.check(bytes(out))


@LOOSE
@given(st.binary(max_size=400), st.sampled_from([b"", *fuzz.MAGICS]))
def test_random_bytes(data: bytes, start: bytes) -> None:
    fuzz.check(start + data)


@LOOSE
@given(st.binary(max_size=300) | st.text("ab", max_size=900).map(str.encode))
def test_lz4_gives_back_what_was_packed(data: bytes) -> None:
    assert bytes(lz4(View(memoryview(fatbins.lz4(data))), len(data))) == data


@LOOSE
@given(st.binary(max_size=60), st.integers(0, 5000))
def test_lz4_of_any_bytes_ends_within_its_size(data: bytes, size: int) -> None:
    try:
        assert len(lz4(View(memoryview(data)), size)) == size
    except Damage as damage:
        assert "LZ4" in str(damage)


@LOOSE
@given(st.integers(0, 1 << 30))
def test_mutation_is_repeatable(seed: int) -> None:
    first, second = (fuzz.mutate(SEEDS[4], random.Random(seed), SEEDS) for _ in range(2))
    assert first == second
