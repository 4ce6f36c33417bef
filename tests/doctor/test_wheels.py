"""Wheels: whatever their members are called and however they lie, nothing is harmed."""

import os
import stat
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doctor.made import wheel
from fatbins import WORKS, cubin, entry, fatbin, library
from sparkwell.doctor import wheels
from sparkwell.doctor.asked import Asked
from sparkwell.doctor.examine import Examined, examine
from sparkwell.doctor.images import Level
from sparkwell.doctor.wheels import WheelSource
from sparkwell.errors import Unreadable
from sparkwell.hardware import target

GPU = Asked("sm_90", "H200", target(90), None)
LIBRARY = library({".nv_fatbin": fatbin(entry("sass", 90, cubin(90, {"k": WORKS})))})


def looked(path: Path, level: Level = Level.KERNELS) -> Examined:
    return examine(WheelSource(path.name, path), [GPU], level)


def test_a_wheel(tmp_path: Path) -> None:
    path = wheel(tmp_path / "a-1-py3-none-any.whl", {"a/x.so": LIBRARY, "a/y.py": b"x = 1\n"})
    found = looked(path)
    assert (found.kind, found.name, found.problems) == ("wheel", path.name, ())
    (one,) = found.files
    assert one.file.path == "a/x.so" and one.verdicts[0].kernels[0].verdict == "native"


@pytest.mark.parametrize(
    "name",
    ["../../escaped.so", "/absolute/escaped.so", "..\\..\\escaped.so", "a/../../escaped.so",
     "C:\\escaped.so", "CON.so", "a" * 60000 + ".so", "\u202eos.x.so", "\x1b]0;owned\x07.so",
     "nul\x01.so", "b" * 300 + "/" * 3000 + "x.so"],
)  # fmt: skip
def test_names_are_never_paths(tmp_path: Path, name: str, capsys) -> None:  # type: ignore[no-untyped-def]
    inside = tmp_path / "x" / "y"
    inside.mkdir(parents=True)
    path = wheel(inside / "a.whl", {name: LIBRARY})
    before = sorted(tmp_path.rglob("*"))
    found = looked(path)
    assert len(found.files) == 1 and not found.problems
    shown = found.files[0].file.path
    assert shown.isprintable() and len(shown) <= 300
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/absolute").exists() and not list(Path(os.getcwd()).glob("*escaped*"))


def test_links_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("x.so")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, LIBRARY)  # what a link says is where it points, not code
        archive.writestr("y.so", LIBRARY)
    assert [one.file.path for one in looked(path).files] == ["y.so"]


def test_temporary_files_are_gone_afterwards(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    path = wheel(tmp_path / "a.whl", {"x.so": LIBRARY})
    members = WheelSource("a", path).entries()
    with next(members).on_disk() as place:
        assert place.read_bytes() == LIBRARY and place.parent.parent == tmp_path / "t"
        assert place.name == "member"
    assert list((tmp_path / "t").iterdir()) == []


# ---------------------------------------------------------------- bombs


def test_a_member_that_unpacks_to_too_much(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(wheels, "MOST_UNPACKED", 3 << 20)
    path = wheel(tmp_path / "a.whl", {"a.so": bytes(4 << 20), "b.so": LIBRARY})
    found = looked(path)
    assert found.problems == (
        "a.whl: member 'a.so' is more than 3145728 bytes unpacked, want at most that",
    )
    assert [one.file.path for one in found.files] == ["b.so"]
    exact = wheel(tmp_path / "b.whl", {"a.so": bytes(3 << 20)})
    assert not any("unpacked" in problem for problem in looked(exact).problems)


def test_members_that_together_unpack_to_too_much(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(wheels, "ALWAYS_ALLOWED", 5 << 20)
    monkeypatch.setattr(wheels, "MOST_RATIO", 2)
    path = wheel(tmp_path / "a.whl", {f"{i}.so": bytes(1 << 20) for i in range(8)})
    found = looked(path)
    assert len(found.problems) >= 2
    assert "member '5.so' is part of more than 2 times the wheel's size" in found.problems[0]
    whole = wheel(tmp_path / "b.whl", {f"{i}.so": bytes(1 << 20) for i in range(5)})
    assert not any("times" in problem for problem in looked(whole).problems)


def test_the_wheel_lies_about_a_size(tmp_path: Path) -> None:
    """The directory says 4 GiB, and there are 1,000 bytes; or the other way round."""
    path = wheel(tmp_path / "a.whl", {"a.so": bytes(1000)})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    for claimed in (0xFFFFFFFE, 10):
        struct.pack_into("<I", data, at + 24, claimed)
        path.write_bytes(data)
        found = looked(path)
        assert len(found.problems) == 1 and "member 'a.so'" in found.problems[0]


def test_too_many_members(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(wheels, "MOST_MEMBERS", 3)
    path = wheel(tmp_path / "a.whl", {f"{i}.py": b"" for i in range(4)})
    assert looked(path).problems == ("a.whl: number of members is 4, want at most 3",)
    path = wheel(tmp_path / "a.whl", {f"{i}.py": b"" for i in range(3)})
    assert looked(path).problems == ()


# ---------------------------------------------------------------- broken ones


def test_an_encrypted_member(tmp_path: Path) -> None:
    path = wheel(tmp_path / "a.whl", {"a.so": LIBRARY})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    struct.pack_into("<H", data, at + 8, 1)
    path.write_bytes(data)
    assert looked(path).problems == ("a.whl: member 'a.so' is encrypted, want a plain one",)


def test_a_packing_that_could_take_any_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.so", LIBRARY)
    assert "packed by method 14" in looked(path).problems[0]


def test_an_unknown_compression(tmp_path: Path) -> None:
    path = wheel(tmp_path / "a.whl", {"a.so": LIBRARY})
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, data.rindex(b"PK\x01\x02") + 10, 77)
    path.write_bytes(data)
    assert looked(path).problems == (
        "a.whl: member 'a.so' is packed by method 77, want one that is stored or deflated",
    )


def test_a_member_that_is_damaged(tmp_path: Path) -> None:
    path = wheel(tmp_path / "a.whl", {"a.so": LIBRARY, "b.so": LIBRARY}, compress=False)
    data = bytearray(path.read_bytes())
    data[data.index(b"\x7fELF") + 200] ^= 0xFF
    path.write_bytes(data)
    found = looked(path)
    assert len(found.problems) == 1 and found.problems[0].startswith("a.whl: member 'a.so' is Bad")
    assert [one.file.path for one in found.files] == ["b.so"]


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"not a zip at all" * 10, b"PK\x05\x06" + bytes(18)[:-1]]
)
def test_what_is_no_archive(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.whl"
    path.write_bytes(data)
    with pytest.raises(Unreadable, match=r"^a.whl: archive is .*, want a whole zip archive$"):
        list(WheelSource("a.whl", path).entries())
    assert looked(path).problems[0].startswith("a.whl: archive is ")


def test_a_missing_wheel(tmp_path: Path) -> None:
    (problem,) = looked(tmp_path / "none.whl").problems
    assert "none.whl: archive is" in problem


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_is_an_error_or_none(tmp_path_factory, data) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("w")
    path = wheel(folder / "a.whl", {"a/x.so": LIBRARY, "a/y.py": b"assert arch == 90\n"})
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))])
    found = looked(path, Level.HEADERS)
    assert isinstance(found.problems, tuple)


def test_only_the_first_bytes_of_a_source_are_read(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(wheels, "MOST_TEXT", 10)
    path = wheel(tmp_path / "a.whl", {"a.cu": b"0123456789abcdef"})
    members = WheelSource("a", path).entries()
    assert next(members).text() == b"0123456789"
