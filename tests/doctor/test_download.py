"""Wheels by name: pip's choice from a folder that stands for an index."""

import sys
from pathlib import Path

import pytest

from doctor.made import wheel
from sparkwell.doctor import download as module
from sparkwell.doctor.download import command, download, platforms
from sparkwell.errors import BadInput

META = b"Metadata-Version: 2.1\nName: gpupkg\nVersion: %s\n"
TAGS = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: false\nTag: %s\n"


def publish(folder: Path, version: str, tags: str, name: str = "gpupkg") -> str:
    info = f"{name}-{version}.dist-info"
    members = {
        f"{info}/METADATA": META % version.encode(),
        f"{info}/WHEEL": (TAGS % tags).encode(),
        f"{info}/RECORD": b"",
    }
    return wheel(folder / f"{name}-{version}-{tags}.whl", members).name


@pytest.fixture
def index(tmp_path: Path, monkeypatch) -> Path:  # type: ignore[no-untyped-def]
    """A folder that is the only index, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("SPARKWELL_CACHE_DIR", str(tmp_path / "cache"))
    return folder


def test_pips_choice_for_a_host_and_a_python(index: Path, tmp_path: Path) -> None:
    publish(index, "1.0", "py3-none-manylinux_2_28_x86_64")
    arm = publish(index, "1.0", "py3-none-manylinux_2_28_aarch64")
    newer = publish(index, "1.1", "cp312-cp312-manylinux_2_34_x86_64")
    publish(index, "1.1", "cp313-cp313-manylinux_2_34_x86_64")
    publish(index, "1.2", "py3-none-manylinux_2_99_x86_64")  # for a C library of the future
    publish(index, "1.2", "py3-none-win_amd64")
    found = download("gpupkg", "x86_64", "3.12")
    assert found == tmp_path / "cache/wheels/x86_64-py3.12" / newer and found.is_file()
    assert download("gpupkg", "aarch64", "3.12").name == arm
    assert [p for p in found.parent.iterdir() if p.name.startswith(".")] == []


def test_a_pinned_wheel_is_not_asked_for_twice(index: Path) -> None:
    publish(index, "1.0", "py3-none-any")
    first = download("Gpupkg==1.0", "x86_64", "3.12")
    (index / first.name).unlink()
    assert download("GPUPKG==1.0", "x86_64", "3.12") == first
    with pytest.raises(
        BadInput, match="pip finds no wheel of gpupkg==1.0 for Python 3.12 on aarch64"
    ):
        download("gpupkg==1.0", "aarch64", "3.12")
    with pytest.raises(BadInput, match="pip finds no wheel of gpupkg==1.1 for Python 3.12 on x86"):
        download("gpupkg==1.1", "x86_64", "3.12")


def test_what_there_is_no_wheel_of(index: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BadInput,
        match=r"no wheel of gpupkg==9 for Python 3.11 on x86_64 Linux \(No matching .*\); try",
    ):
        download("gpupkg==9", "x86_64", "3.11")
    assert list((tmp_path / "cache/wheels/x86_64-py3.11").iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["", "-r x", "--index-url=x", "a b", "a; python_version<'3'", "http://x/y.whl", "git+x", "../x",
     "a==", "a==1 --pre", "a>=1", "a==1.0\x00", "a[x]"],
)  # fmt: skip
def test_only_names_are_downloaded(index: Path, monkeypatch, text: str) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("subprocess.run", lambda *a, **k: pytest.fail("pip was started"))
    with pytest.raises(BadInput, match="cannot be downloaded; want a distribution's name"):
        download(text, "x86_64")


@pytest.mark.parametrize("python", ["2.7", "3", "3.12.1", "cp312", "3.x"])
def test_versions_of_python(index: Path, python: str) -> None:
    with pytest.raises(BadInput, match="Python version is .*, want a form like '3.12'"):
        download("gpupkg", "x86_64", python)


def test_tags_of_a_host() -> None:
    tags = platforms("aarch64")
    assert tags[0] == "manylinux_2_39_aarch64" and tags[-1] == "linux_aarch64"
    assert tags.index("manylinux_2_17_aarch64") + 1 == tags.index("manylinux2014_aarch64")
    assert {"manylinux2010_aarch64", "manylinux1_aarch64", "manylinux_2_5_aarch64"} <= set(tags)
    assert len(tags) == len(set(tags)) == 35 + 3 + 1


@pytest.mark.parametrize(
    ("version", "resumes"),
    [("23.2.1", False), ("25.0", False), ("25.1", True), ("26.0.dev1", True)],
)
def test_the_command(monkeypatch, version: str, resumes: bool) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(module.metadata, "version", lambda name: version)
    words = command("a==1", "x86_64", "3.12", Path("/c"), quiet=True)
    assert words[:3] == [sys.executable, "-m", "pip"] and words[-3:] == ["--dest", "/c", "a==1"]
    assert {"--no-deps", "--only-binary=:all:", "--quiet"} <= set(words)
    assert ("--resume-retries" in words) == resumes
    loud = command("a==1", "x86_64", "3.12", Path("/c"), quiet=False)
    assert "--quiet" not in loud and loud[loud.index("--progress-bar") + 1] == "on"


def test_without_pip(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def none(name: str) -> str:
        raise module.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.metadata, "version", none)
    with pytest.raises(BadInput, match="downloads need pip; install it with: python -m ensurepip"):
        command("a", "x86_64", "3.12", Path("/c"), quiet=True)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARKWELL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(BadInput, match="cannot be written: Not a directory"):
        download("gpupkg", "x86_64")


@pytest.mark.parametrize(
    ("error", "said"),
    [(b"ERROR: a\nWARNING: b\n", "(a)"), (b"odd\n", "(odd)"), (b"", "(it says nothing)")],
)
def test_pip_fails(index: Path, tmp_path: Path, monkeypatch, error: bytes, said: str) -> None:  # type: ignore[no-untyped-def]
    class Done:
        returncode, stderr = 3, error

    monkeypatch.setattr("subprocess.run", lambda *a, **k: Done)
    with pytest.raises(BadInput) as caught:
        download("gpupkg", "x86_64", "3.12")
    assert said in str(caught.value)
    assert list((tmp_path / "cache/wheels/x86_64-py3.12").iterdir()) == []


def test_an_interrupted_download_leaves_nothing(index: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def interrupted(words, **kwargs):  # type: ignore[no-untyped-def]
        (Path(words[-2]) / "gpupkg-1-py3-none-any.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("subprocess.run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download("gpupkg", "x86_64", "3.12")
    assert list((tmp_path / "cache/wheels/x86_64-py3.12").iterdir()) == []
