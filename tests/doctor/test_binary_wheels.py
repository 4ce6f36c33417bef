"""Two published wheels, fetched, against what cuobjdump says of them (recorded in wheels.json)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from doctor.test_binary_real import tools  # the equality script's
from sparkwell.doctor.images import Level
from sparkwell.doctor.scan import scan

RECORD = json.loads((Path(__file__).parent / "wheels.json").read_text())
WHEELS = RECORD["wheels"]
PLATFORM = ["--only-binary=:all:", "--platform=manylinux_2_28_x86_64", "--python-version=3.11"]


def fetch(name: str, folder: Path) -> Path:
    """The wheel of this file name, by pip."""
    project, version = name.split("-")[:2]
    run = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--retries=1",
        "--timeout=10",
    ]
    run += [*PLATFORM, "-d", str(folder), f"{project.replace('_', '-')}=={version}"]
    try:
        done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{name} could not be fetched within a minute")
    if done.returncode or not (folder / name).exists():
        pytest.skip(f"{name} cannot be fetched here: {done.stderr[-200:]}")
    return folder / name


@pytest.mark.parametrize("name", WHEELS)
def test_images_and_kernels_equal_cuobjdump(tmp_path: Path, name: str) -> None:
    met = set()
    for member, path in tools.members(fetch(name, tmp_path), tmp_path):
        member = member.split("!")[1]
        file = scan(path, Level.KERNELS)
        if member not in WHEELS[name]:
            assert file.images == ()
            continue
        expected = WHEELS[name][member]
        met.add(member)
        assert path.stat().st_size == expected["bytes"] and file.problems == ()
        assert all(image.problems == () for image in file.images)
        for kind in ("sass", "ptx"):
            assert " ".join(tools.targets(file, kind)) == expected["targets"][kind]
            assert len(tools.names(file, kind)) == expected["kernels"][kind]
            assert tools.digest(tools.names(file, kind)) == expected["names_sha256"][kind]
        assert [
            [i.offset, i.size, i.target, tools.digest({k.name for k in i.kernels or ()})]
            for i in file.images
            if i.container is None
        ] == expected["raw"]
    assert met == set(WHEELS[name])


def test_the_record_is_of_something() -> None:
    members = [m for wheel in WHEELS.values() for m in wheel.values()]
    assert len(WHEELS) == 2 and RECORD["made_with"].startswith("cuobjdump 13.")
    assert sum(len(m["targets"]["sass"].split()) for m in members) == 33
    assert sum(m["kernels"]["sass"] for m in members) == 50
    assert sum(len(m["raw"]) for m in members) == 7
