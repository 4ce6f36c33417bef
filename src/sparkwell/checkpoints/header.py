"""The header of one safetensors file, checked against the file's size before any data is read.

Layout (the safetensors format's own description): 8 bytes little-endian N, then N bytes of JSON,
then the data.  Offsets count from the end of the header and tile the data without gap or overlap.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from sparkwell.errors import BadCheckpoint

HEADER_LIMIT = 100_000_000  # bytes; the format's own bound
DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "F32": 4,
    "I64": 8,
    "F64": 8,
}
AGAIN = "download the file again: it is damaged or cut off"


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `nbytes` bytes from `offset`, counted from the start of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


Report = Callable[[BadCheckpoint], None]  # what is done with a thing that is wrong


def stop(error: BadCheckpoint) -> None:
    """The report that goes no further."""
    raise error


def read_header(path: Path, report: Report = stop) -> dict[str, TensorInfo]:
    """The tensors of one .safetensors file, by name.

    Reports a file that is cut off, a header that does not parse, a dtype that is not known, and
    offsets that do not tile the file; tensors whose entries can be read come back all the same.
    """
    try:
        entries, start = _read_entries(path)
    except BadCheckpoint as error:
        report(error)
        return {}
    infos = []
    for name, entry in entries.items():
        try:
            infos.append(_entry(path, name, entry, start))
        except BadCheckpoint as error:
            report(error)
    if len(infos) == len(entries):
        try:
            _check_tiling(path, infos, start, path.stat().st_size)
        except BadCheckpoint as error:
            report(error)
    return {info.name: info for info in infos}


def _read_entries(path: Path) -> tuple[dict[str, Any], int]:
    """The header's JSON, and where the data begin."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > HEADER_LIMIT or 8 + length > size:
            raise BadCheckpoint(
                "header longer than the file" if length <= HEADER_LIMIT else "header too long",
                file=path,
                came=f"{size} bytes, of which the header claims 8 + {length}",
                wanted=f"8 bytes of length, then a header of at most {HEADER_LIMIT} bytes",
                do=AGAIN + ", or not a safetensors file at all",
            )
        raw = file.read(length)
    return _parse(path, raw), 8 + length


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"key {twice!r} stands twice")
        return dict(pairs)

    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
        if not isinstance(entries, dict):
            raise ValueError(f"a JSON {type(entries).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(
            "header is not a valid JSON object",
            file=path,
            came=f"{len(raw)} bytes of header: {error}",
            wanted='{"name": {"dtype": ..., "shape": [...], "data_offsets": [...]}, ...}',
            do=AGAIN,
        ) from error
    entries.pop("__metadata__", None)
    return entries


def _entry(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape = fields.get("dtype"), fields.get("shape")
    offsets = fields.get("data_offsets")
    if (
        not isinstance(dtype, str)
        or not _sizes(shape)
        or not _sizes(offsets)
        or len(offsets) != 2
        or offsets[1] < offsets[0]
    ):
        raise BadCheckpoint(
            "header entry is malformed",
            file=path,
            tensor=name,
            came=f"{entry!r:.200}",
            wanted='{"dtype": text, "shape": [sizes], "data_offsets": [begin, end]}',
            do=AGAIN,
        )
    if dtype not in DTYPE_BYTES:
        raise BadCheckpoint(
            "tensor of a dtype that is not supported",
            file=path,
            tensor=name,
            came=dtype,
            wanted="one of " + ", ".join(DTYPE_BYTES),
            do="choose another version of this model; this one's format cannot be read",
        )
    begin, end = offsets
    nbytes = DTYPE_BYTES[dtype] * math.prod(shape)
    if end - begin != nbytes:
        raise BadCheckpoint(
            "tensor's size in the file does not fit its shape",
            file=path,
            tensor=name,
            came=f"data_offsets [{begin}, {end}], {end - begin} bytes",
            wanted=f"{nbytes} bytes for {dtype} {shape}",
            do=AGAIN,
        )
    return TensorInfo(name, dtype, tuple(shape), path, start + begin, nbytes)


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_tiling(path: Path, infos: list[TensorInfo], start: int, size: int) -> None:
    """In order of offset, each tensor begins where the one before ends; the last ends the file."""
    at = start
    for info in sorted(infos, key=lambda i: (i.offset, i.nbytes)):
        if info.offset != at:
            raise BadCheckpoint(
                "tensors overlap" if info.offset < at else "gap between tensors",
                file=path,
                tensor=info.name,
                came=f"data begins at byte {info.offset - start}",
                wanted=f"byte {at - start}, where the tensor before it ends",
                do=AGAIN,
            )
        at += info.nbytes
    if at != size:
        raise BadCheckpoint(
            "file is cut off" if size < at else "file is longer than its header says",
            file=path,
            came=f"{size} bytes",
            wanted=f"{at} bytes: header and all tensors",
            do=AGAIN,
        )
