"""Files, folders and installed distributions."""

import os
import sys
from pathlib import Path

import pytest

from fatbins import WORKS, cubin, entry, fatbin, library
from sparkwell.doctor import sources
from sparkwell.doctor.asked import Asked, all_targets, asked, read_host, this_host
from sparkwell.doctor.examine import examine
from sparkwell.doctor.images import Level
from sparkwell.doctor.sources import (
    DistributionSource,
    FileSource,
    FolderSource,
    from_name,
    from_path,
    installed,
    looks_like_a_path,
    printable,
)
from sparkwell.errors import BadInput, Unreadable
from sparkwell.hardware import target
from sparkwell.hardware.gpus import gpu
from sparkwell.hardware.probe import DeviceInfo, Machine

LIBRARY = library({".nv_fatbin": fatbin(entry("sass", 90, cubin(90, {"k": WORKS})))})
GPU = Asked("h200", "H200", target(90), "x86_64")


def distribution(
    site: Path, name: str, files: dict[str, bytes], *, version: str = "1.0", url: str = ""
) -> None:
    """An installed distribution in `site`."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for path, data in files.items():
        place = site / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    if url:
        (info / "direct_url.json").write_text(url)
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))


@pytest.fixture
def site(tmp_path: Path, monkeypatch) -> Path:  # type: ignore[no-untyped-def]
    """A folder that is the only place where distributions are looked for."""
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.setattr(sys, "path", [str(place)])
    return place


def names(source: sources.Source) -> list[str]:
    return [entry.name for entry in source.entries()]


# ---------------------------------------------------------------- paths


def test_a_file_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "odd.name"
    path.write_bytes(LIBRARY)
    source = from_path(str(path), path)
    assert isinstance(source, FileSource) and names(source) == [str(path)]
    found = examine(source, [GPU], Level.KERNELS)
    assert found.files[0].verdicts[0].kernels[0].verdict == "native"


def test_a_file_without_gpu_code_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("nothing")
    found = examine(from_path("a.txt", path), [GPU], Level.KERNELS)
    assert found.problems == ("a.txt: no GPU code in it",)


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/z.so", "a.so", "b/a.so.1.2", "c.txt", "d.py"):
        (tmp_path / name).write_bytes(LIBRARY)
    source = from_path("f", tmp_path)
    assert isinstance(source, FolderSource)
    assert names(source) == ["a.so", "c.txt", "d.py", "b/a.so.1.2", "b/z.so"]
    found = examine(source, [GPU], Level.KERNELS, code=False)
    assert [one.file.path for one in found.files] == ["a.so", "b/a.so.1.2", "b/z.so"]


def test_links_and_special_files_in_a_folder_are_left_alone(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "x.so").write_bytes(LIBRARY)
    (inside / "link.so").symlink_to(outside / "x.so")
    (inside / "folder").symlink_to(outside, target_is_directory=True)
    (inside / "loop").symlink_to(inside, target_is_directory=True)
    os.mkfifo(inside / "pipe.so")
    (inside / "real.so").write_bytes(LIBRARY)
    assert names(from_path("f", inside)) == ["real.so"]


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.so")
    for name in ("pipe.so", "none.so"):
        with pytest.raises(BadInput, match=f"{name} is neither a regular file nor a folder"):
            from_path(name, tmp_path / name)


def test_a_folder_with_too_many_files(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(sources, "MOST_FILES", 2)
    for name in ("a.so", "b.so", "c.so"):
        (tmp_path / name).write_bytes(LIBRARY)
    found = examine(from_path("f", tmp_path), [GPU], Level.KERNELS)
    assert found.problems == (
        "f: number of files is more than 2, want fewer: name a folder further down",
    )
    assert len(found.files) == 2


def test_a_file_that_vanishes_or_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    entry_ = sources.DiskEntry("x.py", path, 4)
    with pytest.raises(Unreadable, match="x.py: content is No such file or directory"):
        entry_.text()
    with pytest.raises(Unreadable, match="gone: content is No such file"):
        list(FileSource("gone", tmp_path / "gone").entries())


@pytest.mark.parametrize(
    ("text", "path"),
    [("a/b", True), ("x.whl", True), ("x.so", True), ("x.so.12", True), ("x.CUBIN", True),
     ("vllm", False), ("vllm==0.33.0", False), ("flash-attn", False)],
)  # fmt: skip
def test_what_looks_like_a_path(text: str, path: bool) -> None:
    assert looks_like_a_path(text) is path


def test_names_from_outside_are_made_printable() -> None:
    assert printable("a\x1b[31m\u202eb\n") == "a?[31m?b?"
    assert printable("a" * 300) == "a" * 300
    long = printable("a" * 200_000 + ".so")
    assert len(long) == 300 and long.startswith("aaa") and long.endswith("a.so") and "..." in long


# ---------------------------------------------------------------- distributions


def test_an_installed_distribution(site: Path) -> None:
    distribution(site, "My-Pkg", {"my/x.so": LIBRARY, "my/y.py": b"", "my/gone.so": b""})
    (site / "my/gone.so").unlink()
    for name in ("My-Pkg", "my.pkg", "my_pkg==1.0", " my-pkg == 1.0 "):
        source = from_name(name)
        assert (source.name, source.kind) == ("My-Pkg 1.0", "distribution")
        assert names(source) == ["my/x.so", "my/y.py"]


def test_distributions_that_are_not_there(site: Path) -> None:
    distribution(site, "bitsandbytes", {})
    with pytest.raises(BadInput, match=r"'bitsandbits' .*did you mean 'bitsandbytes'\?"):
        from_name("bitsandbits")
    with pytest.raises(BadInput, match=r"'zzz' is no path and no installed distribution; add"):
        from_name("zzz")
    with pytest.raises(BadInput, match=r"bitsandbytes 1.0 is installed, not 2.0; add --download"):
        from_name("bitsandbytes==2.0")


@pytest.mark.parametrize("text", ["", "--index-url=x", "a b", "a;rm", "a\x1b", "é", "-", "x" * 500])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(BadInput, match="is neither a path nor a distribution's name; want a file"):
        from_name(text)


def test_everything_that_is_installed(site: Path) -> None:
    distribution(site, "b-two", {})
    distribution(site, "A-one", {"x.so": b""})
    (site / "broken-1.0.dist-info").mkdir()
    assert [source.name for source in installed()] == ["A-one 1.0", "b-two 1.0"]


def test_a_record_that_points_outside(site: Path) -> None:
    """Files beside the packages, such as programs, are looked at; links are not."""
    distribution(site, "odd", {"../bin/tool.so": LIBRARY})
    (site.parent / "bin/link.so").symlink_to("/etc/passwd")
    record = site / "odd-1.0.dist-info" / "RECORD"
    record.write_text(record.read_text() + "../bin/link.so,,\n../../../../../../etc,,\n")
    source = from_name("odd")
    assert names(source) == ["../bin/tool.so"]


@pytest.mark.parametrize("src", [True, False])
def test_a_distribution_installed_from_its_sources(site: Path, src: bool) -> None:
    project = site.parent / "project with space"
    (project / "src" / "p" if src else project / "p").mkdir(parents=True)
    (project / ("src/p" if src else "p") / "x.so").write_bytes(LIBRARY)
    url = project.as_uri()
    told = f'{{"url": "{url}", "dir_info": {{"editable": true}}}}'
    distribution(site, "p", {}, url=told)
    assert names(from_name("p")) == ["p/x.so"]


@pytest.mark.parametrize("told", ["{", "[]", '{"dir_info": 3}', '{"dir_info": {"editable": true}}'])
def test_a_broken_note_of_where_it_is_from(site: Path, told: str) -> None:
    distribution(site, "p", {"x.so": LIBRARY}, url=told)
    assert names(from_name("p")) == ["x.so"]


def test_a_distribution_source_has_a_kind(tmp_path: Path) -> None:
    assert DistributionSource("a 1", tmp_path, ()).kind == "distribution"


# ---------------------------------------------------------------- GPUs and hosts


def test_products_and_targets() -> None:
    found = asked(["spark", "sm_90", "rtx-4090", "dgx-spark", "12.0"])
    assert [(one.name, one.target.name) for one in found] == [
        ("dgx-spark", "sm_121"), ("sm_90", "sm_90"), ("rtx-4090", "sm_89"), ("sm_120", "sm_120"),
    ]  # fmt: skip
    assert found[0].host == "aarch64" and found[1].host == this_host()
    assert asked(["jetson-thor"])[0].host == "aarch64" and asked(["sm_87"])[0].host == "aarch64"
    assert asked(["dgx-spark"], "x86_64")[0].host == "x86_64"
    assert [one.target.sm for one in all_targets()][:3] == [75, 80, 86]
    assert {one.host for one in all_targets()} == {None}
    assert {one.host for one in all_targets("aarch64")} == {"aarch64"}


def test_a_gpu_that_nobody_knows() -> None:
    with pytest.raises(
        BadInput, match=r"GPU 'rtx-9090' is not known.*; or a target such as sm_121"
    ):
        asked(["rtx-9090"])


@pytest.mark.parametrize(
    ("text", "host"),
    [("x86_64", "x86_64"), ("AMD64", "x86_64"), ("arm64", "aarch64"), ("aarch64", "aarch64")],
)
def test_hosts(text: str, host: str) -> None:
    assert read_host(text) == host == this_host(text)


def test_other_hosts() -> None:
    assert this_host("riscv64") is None
    with pytest.raises(BadInput, match="host is 'riscv64', want one of x86_64, aarch64"):
        read_host("riscv64")


def machine(*gpus: DeviceInfo, problems: tuple[str, ...] = ()) -> Machine:
    return Machine(gpus, "580", "13.0", "aarch64", "Linux", 4, None, problems)


def test_this_machines_gpus(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    h200 = DeviceInfo(0, "NVIDIA H200", "9.0", target(90), None, False, "580", gpu("h200"))
    other = DeviceInfo(2, "NVIDIA L4", "8.9", target(89), None, False, "580", None)
    strange = DeviceInfo(3, "NVIDIA X", "99.9", None, None, False, "580", None)
    monkeypatch.setattr("sparkwell.doctor.asked.probe", lambda: machine(h200, h200, other, strange))
    found = asked([])
    assert [(one.name, one.title, one.host) for one in found] == [
        ("h200", "NVIDIA H200", "aarch64"),
        ("sm_89", "NVIDIA L4", "aarch64"),
    ]
    assert asked([], "x86_64")[0].host == "x86_64"


def test_a_machine_without_a_gpu(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("sparkwell.doctor.asked.probe", lambda: machine(problems=("no driver",)))
    with pytest.raises(BadInput, match=r"no GPU of this machine is known \(no driver\); say which"):
        asked([])
