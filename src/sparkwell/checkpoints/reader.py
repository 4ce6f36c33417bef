"""A folder of safetensors files: everything checked on opening, then one tensor read at a time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkwell.checkpoints.config import read_config, read_json_object
from sparkwell.checkpoints.header import Report, TensorInfo, read_header, stop
from sparkwell.errors import BadCheckpoint, BadInput
from sparkwell.lazy import later

if TYPE_CHECKING:
    import torch
else:  # headers are understood without it
    torch = later("torch")

__all__ = ["INDEX", "SINGLE", "Checkpoint", "TensorInfo"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {  # safetensors' name -> torch's
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "F32": "float32",
    "I64": "int64",
    "F64": "float64",
}
CUT_OFF = "file ended inside a tensor; it was longer when it was opened"
READ_AT_ONCE = 1 << 30  # bytes; one read() moves less than 2^31 on Linux
OTHER_FORMATS = (".bin", ".pt", ".pth", ".gguf", ".ckpt", ".h5", ".msgpack", ".onnx")


@dataclass(frozen=True)
class Checkpoint:
    """A model folder whose index and headers have been checked; no tensor's data is held.

    folder: where it lies.  config: config.json.  tensors: every tensor, by name.
    memo: what other modules have made of the headers, so that they do it once.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path, *, report: Report = stop) -> Checkpoint:
        """Check config.json's syntax, the index, every header and every file's size.

        folder: with model.safetensors, or model.safetensors.index.json and the files it names.
        report: called with each thing wrong; after one that returns, what can be read is read.
        Raises BadCheckpoint at the first thing wrong; with `report`, where nothing can be read.
        """
        folder = Path(folder)
        config = read_config(folder)
        if not (folder / INDEX).is_file():
            if not (folder / SINGLE).is_file():
                raise _no_safetensors(folder)
            return cls(folder, config, read_header(folder / SINGLE, report))
        weight_map = _read_index(folder, report)
        return cls(folder, config, _read_shards(folder, weight_map, report))

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def read(self, name: str, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """The tensor's data, read from the file straight into place.

        out: contiguous CPU tensor of the same dtype and shape to read into; None: a new one.
        Raises BadCheckpoint where there is no such tensor or the file has changed since it was
        opened; BadInput where `out` does not fit.
        """
        if name not in self.tensors:
            raise BadCheckpoint(
                "no such tensor",
                file=self.folder,
                tensor=name,
                came=f"{len(self.tensors)} tensors, none of this name",
                wanted=name,
                do="check that config.json and the weights belong to the same model",
            )
        return self._read(self.tensors[name], out)

    def read_one(self, name: str, index: int) -> torch.Tensor:
        """tensor[index] along its first dimension, the only part that is read.

        Raises BadCheckpoint as `read` does.
        """
        whole = self.tensors[name]
        nbytes = whole.nbytes // whole.shape[0]
        offset = whole.offset + index * nbytes
        return self._read(replace(whole, shape=whole.shape[1:], offset=offset, nbytes=nbytes))

    def _read(self, info: TensorInfo, out: torch.Tensor | None = None) -> torch.Tensor:
        dtype = getattr(torch, DTYPES[info.dtype])
        if out is None:
            out = torch.empty(info.shape, dtype=dtype, device="cpu")
        elif (
            out.dtype != dtype
            or tuple(out.shape) != info.shape
            or not out.is_contiguous()
            or out.device.type != "cpu"
        ):
            raise BadInput(
                f"read: out is {out.dtype} {list(out.shape)} with strides {out.stride()} on "
                f"{out.device}; want contiguous {dtype} {list(info.shape)} on cpu for {info.name}"
            )
        _read_into(info, out)
        return out


def _read_into(info: TensorInfo, out: torch.Tensor) -> None:
    """read(2) from the file into the tensor's own memory: no copy, no mapping of the file."""
    target = out.detach().reshape(-1).view(torch.uint8).numpy().data
    done = 0
    with open(info.file, "rb", buffering=0) as file:
        file.seek(info.offset)
        while done < info.nbytes:
            count = file.readinto(target[done : done + READ_AT_ONCE])
            if not count:
                raise BadCheckpoint(
                    CUT_OFF,
                    file=info.file,
                    tensor=info.name,
                    came=f"{done} bytes",
                    wanted=f"{info.nbytes} bytes from byte {info.offset}",
                    do="let nothing write to the folder while a model loads, then load it again",
                )
            done += count


# ---------------------------------------------------------------- index and shards


def _read_index(folder: Path, report: Report) -> dict[str, str]:
    """weight_map: tensor -> file name, of the files that are there."""
    path = folder / INDEX
    weight_map = read_json_object(path).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or any(not isinstance(name, str) for name in weight_map.values())
    ):
        raise BadCheckpoint(
            "index without a weight_map",
            file=path,
            came=f"weight_map = {weight_map!r:.200}",
            wanted='"weight_map": {"tensor": "file.safetensors", ...}',
            do="download the index again",
        )
    files = sorted(set(weight_map.values()))
    outside = [name for name in files if Path(name).name != name]
    absent = [name for name in files if not (folder / name).is_file()]
    if outside or absent:
        names = outside or absent
        error = BadCheckpoint(
            "index names files outside its folder" if outside else "index names absent files",
            file=path,
            came=f"{len(names)} of {len(files)} files: {_few(names)}",
            wanted="plain names of files in the same folder" if outside else "every file present",
            do="download the missing files; the download may have been interrupted",
        )
        report(error)
        lost = {*outside, *absent}
        weight_map = {tensor: name for tensor, name in weight_map.items() if name not in lost}
    if (folder / SINGLE).is_file() and SINGLE not in files:
        two = BadCheckpoint(
            "two sets of weights in one folder",
            file=path,
            came=f"{SINGLE} beside an index that does not name it",
            wanted=f"{SINGLE}, or {INDEX} and its files",
            do="remove the set that you do not want",
        )
        report(two)
    return weight_map


def _read_shards(folder: Path, weight_map: dict[str, str], report: Report) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for name in sorted(set(weight_map.values())):
        for tensor, info in read_header(folder / name, report).items():
            if tensor in tensors:
                error = _disagreement(
                    "tensor stands in two files",
                    info,
                    came=f"{tensors[tensor].file.name} and {name}",
                    wanted=f"{weight_map.get(tensor, 'one of them')} only",
                )
                report(error)
            elif weight_map.get(tensor) != name:
                error = _disagreement(
                    "index and files disagree on where a tensor lies",
                    info,
                    came=f"it is in {name}",
                    wanted=weight_map.get(tensor, "nowhere") + f", says {INDEX}",
                )
                report(error)
            tensors.setdefault(tensor, info)
    lost = [tensor for tensor in weight_map if tensor not in tensors]
    if lost:
        error = BadCheckpoint(
            "index names tensors that its files do not hold",
            file=folder / weight_map[lost[0]],
            tensor=_few(lost),
            came=f"{len(tensors)} of the {len(weight_map)} tensors in {INDEX}",
            wanted="all of them",
            do="download index and files again; they may be of different versions",
        )
        report(error)
    return tensors


def _disagreement(problem: str, info: TensorInfo, *, came: str, wanted: str) -> BadCheckpoint:
    do = "download index and files again; they may be of different versions"
    return BadCheckpoint(problem, file=info.file, tensor=info.name, came=came, wanted=wanted, do=do)


def _few(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _no_safetensors(folder: Path) -> BadCheckpoint:
    names = sorted(path.name for path in folder.iterdir())
    other = [name for name in names if name.endswith(OTHER_FORMATS)]
    loose = [name for name in names if name.endswith(".safetensors")]
    do = "download the weights: *.safetensors"
    if loose:
        do = f"add {INDEX}, or name a single file {SINGLE}"
    elif other:
        do = (
            "take the model's safetensors version, or convert it: load it in Transformers and "
            "call save_pretrained, which writes safetensors"
        )
    return BadCheckpoint(
        "no safetensors weights in the folder" if not loose else f"no {SINGLE} and no index",
        file=folder,
        came=_few(other or loose or names) or "an empty folder",
        wanted=f"{SINGLE}, or {INDEX} and the files it names",
        do=do,
    )
