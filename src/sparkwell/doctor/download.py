"""Wheels from the index that pip is set up to use: pip's choice for a host and a Python.

pip does all of it, so its configuration, certificates and hash checks hold.  A wheel stands in the
cache only when it is whole; a name with a version that stands there is not asked for again.
"""

import contextlib
import importlib.metadata as metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sparkwell.doctor.images import Host
from sparkwell.doctor.sources import plain, printable
from sparkwell.env import CACHE_DIR
from sparkwell.errors import BadInput

NEWEST_GLIBC = 39  # 2.39, of Ubuntu 24.04 and DGX OS 7
OLDEST_GLIBC = 5
LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,100}[A-Za-z0-9])?)"
    r"(?:==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]{0,60}))?"
)
PYTHON = re.compile(r"3\.\d{1,2}")
RESUMES = (25, 1)  # the first pip that takes up an interrupted download


def platforms(host: Host) -> list[str]:
    """Platform tags a current Linux host takes, best first."""
    tags = []
    for minor in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1):
        tags.append(f"manylinux_2_{minor}_{host}")
        if minor in LEGACY:
            tags.append(f"{LEGACY[minor]}_{host}")
    return [*tags, f"linux_{host}"]


def download(requirement: str, host: Host, python: str | None = None) -> Path:
    """The wheel pip chooses for `requirement` ("vllm", "vllm==0.33.0") on `host`.

    python: "3.12"; None: this one's version.  Raises BadInput where the name has another form,
    where there is no such wheel, and where pip fails.
    """
    match = REQUIREMENT.fullmatch(requirement.strip())
    if match is None:
        raise BadInput(
            f"{printable(requirement)!r} cannot be downloaded; want a distribution's name, with a "
            "version or without, like 'vllm==0.33.0'"
        )
    python = python or f"3.{sys.version_info.minor}"
    if not PYTHON.fullmatch(python):
        raise BadInput(f"Python version is {printable(python)!r}, want a form like '3.12'")
    folder = Path(CACHE_DIR.get()).expanduser() / "wheels" / f"{host}-py{python}"
    name, version = plain(match["name"]), match["version"]
    if version and (cached := _cached(folder, name, version)):
        return cached
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror}") from None
    try:
        _pip(requirement.strip(), host, python, part)
        wheels = sorted(part.glob("*.whl"))
        if len(wheels) != 1:
            raise BadInput(f"pip found no wheel of {requirement}, but something else; build it")
        os.replace(wheels[0], folder / wheels[0].name)
        return folder / wheels[0].name
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(part)


def _cached(folder: Path, name: str, version: str) -> Path | None:
    for wheel in sorted(folder.glob("*.whl")):
        parts = wheel.name.split("-")
        if len(parts) >= 5 and plain(parts[0]) == name and parts[1] == version:
            return wheel
    return None


def command(requirement: str, host: Host, python: str, folder: Path, quiet: bool) -> list[str]:
    """The command that downloads."""
    try:
        parts = metadata.version("pip").split(".")
    except metadata.PackageNotFoundError:
        raise BadInput("downloads need pip; install it with: python -m ensurepip") from None
    words = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    words += ["--disable-pip-version-check", "--implementation", "cp", "--python-version", python]
    words += [word for tag in platforms(host) for word in ("--platform", tag)]
    if tuple(int(part) for part in parts[:2] if part.isdecimal()) >= RESUMES:
        words += ["--resume-retries", "5"]
    words += ["--quiet"] if quiet else ["--progress-bar", "on"]
    return [*words, "--dest", str(folder), requirement]


def _pip(requirement: str, host: Host, python: str, folder: Path) -> None:
    quiet = not sys.stderr.isatty()
    words = command(requirement, host, python, folder, quiet)
    shown = subprocess.DEVNULL if quiet else sys.stderr  # pip's progress bar is its output
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=shown, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").splitlines()
        errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR")]
        last = printable((errors or said or ["it says nothing"])[-1])
        raise BadInput(
            f"pip finds no wheel of {requirement} for Python {python} on {host} Linux ({last}); "
            "try another version or --host, or build it from source"
        )
