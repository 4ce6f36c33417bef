"""Where the files come from: one file, a folder, an installed distribution.

Nothing is imported or run, and no link inside a folder is followed.  Names from outside are shown
and never used to write a file.
"""

import contextlib
import difflib
import importlib.metadata as metadata
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlparse

from sparkwell.errors import BadInput, Unreadable

GPU_FILE = re.compile(r"(?i)\.(so(\.[\d.]+)?|pyd|dll|cubin|fatbin|ptx|a|lib|o|obj)$")
PYTHON_FILE = re.compile(r"(?i)\.pyi?$")
CUDA_FILE = re.compile(r"(?i)\.(cu|cuh|h|hpp|inl)$")
ASSEMBLER = re.compile(r"(?:^|/)ptxas[\w.-]*$")
MOST_FILES = 500_000  # of a folder
MOST_TEXT = 4 << 20  # bytes of one source file that are read
NAME_SHOWN = 300  # characters


class Entry(Protocol):
    """One file of a source."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def on_disk(self) -> contextlib.AbstractContextManager[Path]:
        """A path that holds its bytes while inside.  Raises Unreadable."""

    def text(self) -> bytes:
        """Its first MOST_TEXT bytes.  Raises Unreadable."""


class Source(Protocol):
    """Something that was asked about.  kind: file, folder, distribution or wheel."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def path(self) -> Path: ...

    def entries(self) -> Iterator[Entry]:
        """Its files, by name.  Raises Unreadable."""


def printable(name: str) -> str:
    """A name from outside as one that no terminal takes for a command, shortened in the middle."""
    if len(name) > NAME_SHOWN:
        name = f"{name[: NAME_SHOWN // 2]}...{name[3 - NAME_SHOWN // 2 :]}"
    return "".join(c if c.isprintable() else "?" for c in name)


@dataclass(frozen=True)
class DiskEntry:
    """A file that lies on the disk."""

    name: str
    place: Path
    size: int

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[Path]:
        yield self.place

    def text(self) -> bytes:
        try:
            with self.place.open("rb") as file:
                return file.read(MOST_TEXT)
        except OSError as error:
            raise unreadable(self.name, error) from None


def unreadable(name: str, error: Exception) -> Unreadable:
    """An error of the system or a library as ours."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    came = printable(words) or type(error).__name__
    return Unreadable(printable(name), field="content", came=came, wanted="a readable file")


def regular(path: Path, name: str) -> DiskEntry | None:
    """The entry for `path` where it is a regular file and no link, else None."""
    try:
        found = path.lstat()
    except (OSError, ValueError):
        return None
    return DiskEntry(name, path, found.st_size) if stat.S_ISREG(found.st_mode) else None


@dataclass(frozen=True)
class FileSource:
    """One file, whatever its name."""

    name: str
    path: Path
    kind: str = "file"

    def entries(self) -> Iterator[Entry]:
        try:
            yield DiskEntry(self.name, self.path, self.path.stat().st_size)
        except OSError as error:
            raise unreadable(self.name, error) from None


@dataclass(frozen=True)
class FolderSource:
    """Everything below a folder."""

    name: str
    path: Path
    kind: str = "folder"

    def entries(self) -> Iterator[Entry]:
        seen = 0
        for folder, below, files in os.walk(self.path):
            below.sort()
            for file in sorted(files):
                seen += 1
                if seen > MOST_FILES:
                    raise Unreadable(
                        printable(self.name),
                        field="number of files",
                        came=f"more than {MOST_FILES}",
                        wanted="fewer: name a folder further down",
                    )
                place = Path(folder, file)
                if entry := regular(place, place.relative_to(self.path).as_posix()):
                    yield entry


@dataclass(frozen=True)
class DistributionSource:
    """An installed distribution, by its list of files."""

    name: str
    path: Path
    files: tuple[tuple[str, Path], ...]
    kind: str = "distribution"

    def entries(self) -> Iterator[Entry]:
        for name, place in self.files:
            if entry := regular(place, name):
                yield entry


def from_path(text: str, path: Path) -> Source:
    """The file or folder at `path`; wheels are `wheels.WheelSource`'s.  Raises BadInput."""
    if path.is_dir():
        return FolderSource(text, path)
    if not path.is_file():
        raise BadInput(f"{printable(text)} is neither a regular file nor a folder")
    if path.suffix == ".whl":
        from sparkwell.doctor.wheels import WheelSource

        return WheelSource(path.name, path)
    return FileSource(text, path)


def looks_like_a_path(text: str) -> bool:
    """Whether `text` can only be a path, so that a missing one is no distribution's name."""
    return (
        "/" in text
        or os.sep in text
        or bool(re.search(r"(?i)\.whl$", text) or GPU_FILE.search(text))
    )


# ---------------------------------------------------------------- installed distributions


def plain(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> Iterator[DistributionSource]:
    """Every installed distribution with a name, each once, by name."""
    found: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"] if distribution.metadata else None
        if name:
            found.setdefault(plain(name), distribution)
    for name in sorted(found):
        yield _source(found[name])


def from_name(text: str) -> DistributionSource:
    """The installed distribution `text` ("torch", "torch==2.13.0").

    Raises BadInput where there is none, or another version.
    """
    name, _, version = text.partition("==")
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,200}[A-Za-z0-9])?", name.strip()):
        raise BadInput(
            f"{printable(text)!r} is neither a path nor a distribution's name; want a file, a "
            "folder, a wheel, or a name like 'vllm' or 'vllm==0.33.0'"
        )
    try:
        distribution = metadata.distribution(name.strip())
    except metadata.PackageNotFoundError:
        known = {plain(d.metadata["Name"] or "") for d in metadata.distributions() if d.metadata}
        close = difflib.get_close_matches(plain(name), known, n=1, cutoff=0.75)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise BadInput(
            f"{name!r} is no path and no installed distribution{hint} add --download to look at "
            "the wheel that pip would choose"
        ) from None
    if version and distribution.version != version.strip():
        raise BadInput(
            f"{name} {distribution.version} is installed, not {version.strip()}; add --download "
            "to look at the wheel of that version"
        )
    return _source(distribution)


def _source(distribution: metadata.Distribution) -> DistributionSource:
    name = f"{distribution.metadata['Name']} {distribution.version}"
    root = Path(str(distribution.locate_file("")))
    if folder := _editable(distribution):
        inside = FolderSource(name, folder)
        files = tuple((e.name, e.place) for e in inside.entries() if isinstance(e, DiskEntry))
        return DistributionSource(printable(name), folder, files)
    files = tuple(
        (file.as_posix(), Path(str(distribution.locate_file(file))))
        for file in sorted(distribution.files or ())
    )
    return DistributionSource(printable(name), root, files)


def _editable(distribution: metadata.Distribution) -> Path | None:
    """The folder of a distribution that is installed as a link to its sources."""
    try:
        told = json.loads(distribution.read_text("direct_url.json") or "{}")
        if not told.get("dir_info", {}).get("editable"):
            return None
        folder = Path(unquote(urlparse(told["url"]).path))
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    return folder / "src" if (folder / "src").is_dir() else folder
