"""One weight as the files hold it: its format, its tensors and its shape; no data is read yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sparkwell.checkpoints.header import TensorInfo
from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.errors import BadCheckpoint

if TYPE_CHECKING:
    from sparkwell.formats.quantized import Activations
    from sparkwell.formats.weights import QuantizedTensor

Kind = Literal["fp8-block", "fp8-rows", "nvfp4", "mxfp4", "int4"]

PLAIN = ("BF16", "F16", "F32", "F64")
FLOATS = ("F32", "BF16", "F16")  # of scales
AGAIN = "download the files again; weights and scales may be of different versions"
SUPPORTED = (
    "no quantization, DeepSeek's FP8, compressed-tensors (FP8, NVFP4, MXFP4, INT4), ModelOpt "
    "(FP8, NVFP4), AWQ, GPTQ or gpt-oss's MXFP4"
)
OTHER = "choose the model's BF16 version, or one quantized in a format named above"


@dataclass(frozen=True)
class Stored:
    """A quantized weight before it is read.

    name: what a model calls it, X.weight.  dialect: whose conventions it follows.
    shape: (n, k) of the weight itself.  parts: role -> tensor that holds it.
    group: values of one scale along a row; rows of a block as well for "fp8-block".
    activations: what the checkpoint was made for.
    read: makes the weight of the files' data.
    source: index of an expert of stacked tensors and the first of its rows and their step.
    check: raises BadCheckpoint for values that `read` refuses, scales aside, and returns one for
    what is worth knowing; reads no codes.
    """

    name: str
    dialect: str
    kind: Kind
    shape: tuple[int, int]
    parts: Mapping[str, TensorInfo]
    read: Callable[[Stored, Checkpoint], QuantizedTensor]
    activations: Activations = "none"
    group: int | None = None
    source: tuple[int, int, int] | None = None
    check: Callable[[Stored, Checkpoint], BadCheckpoint | None] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of this weight in the files."""
        if self.source is None:
            return sum(info.nbytes for info in self.parts.values())
        _, _, step = self.source
        return sum(info.nbytes // info.shape[0] // step for info in self.parts.values())


@dataclass(frozen=True)
class Promise:
    """What the config says of one module; None: nothing.

    said: where it says so, for errors.  static: each weight has a scale of its activations.
    """

    said: str
    kind: Kind | None = None
    activations: Activations | None = None
    group: int | None = None
    static: bool = False
    symmetric: bool | None = None


@dataclass(frozen=True)
class Declared:
    """The config's quantization_config, as far as it matters here.

    method: its quant_method, None where nothing is declared.  file: where it stands.
    promise: what it says of a module.  pow2_scales: activations' scales are powers of two.
    version: of the file format, where readings differ.  cache: what it says of the KV cache.
    quantizes: whether it says that any weight is quantized.  integer_activations: whether it says
    that activations become integers, which none do here.
    """

    method: str | None
    file: Path
    promise: Callable[[str], Promise | None] = field(default=lambda module: None)
    pow2_scales: bool = False
    version: str | None = None
    cache: str | None = None
    quantizes: bool = False
    integer_activations: bool = False


@dataclass(frozen=True)
class Module:
    """The tensors of one module, X.leaf, by leaf, and what is said of it."""

    name: str
    tensors: Mapping[str, TensorInfo]
    declared: Declared
    promise: Promise | None = None

    def __contains__(self, leaf: object) -> bool:
        return leaf in self.tensors

    def __getitem__(self, leaf: str) -> TensorInfo:
        return self.tensors[leaf]

    def need(self, leaf: str, beside: str) -> TensorInfo:
        """The tensor, or BadCheckpoint that tells what it is missed beside."""
        if leaf not in self.tensors:
            info = self.tensors[beside]
            raise mismatch(
                f"quantized weight without {leaf}", info, described(info), f"{self.name}.{leaf}"
            )
        return self.tensors[leaf]

    def matrix(self, leaf: str, *dtypes: str) -> TensorInfo:
        """The tensor, which is to be a matrix of one of the dtypes."""
        info = self.tensors[leaf]
        if info.dtype not in dtypes:
            raise mismatch(
                "packed weight of a wrong dtype", info, described(info), " or ".join(dtypes)
            )
        if len(info.shape) != 2:
            raise mismatch("quantized weight is no matrix", info, described(info), "two sizes")
        return info

    @property
    def activations(self) -> Activations:
        """What the config says of the activations; "none" where it says nothing."""
        promise = self.promise
        return promise.activations if promise and promise.activations else "none"


def described(info: TensorInfo) -> str:
    """The tensor's dtype and shape."""
    return f"{info.dtype} {list(info.shape)}"


def mismatch(
    problem: str, info: TensorInfo, came: str, wanted: str, do: str = AGAIN
) -> BadCheckpoint:
    """The error for one tensor."""
    return BadCheckpoint(problem, file=info.file, tensor=info.name, came=came, wanted=wanted, do=do)


def unsupported(file: Path, came: str, wanted: str = SUPPORTED, do: str = OTHER) -> BadCheckpoint:
    """The error for a quantization that nothing here reads."""
    return BadCheckpoint(
        "quantization scheme is not supported", file=file, came=came, wanted=wanted, do=do
    )


def check_part(
    info: TensorInfo, dtypes: tuple[str, ...], shapes: tuple[tuple[int, ...], ...], of: TensorInfo
) -> None:
    """Raises BadCheckpoint unless the scales are of one of the dtypes and shapes."""
    if info.dtype not in dtypes:
        raise mismatch("scales of a wrong dtype", info, info.dtype, " or ".join(dtypes))
    if info.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise mismatch(
            "scales of a wrong shape", info, str(list(info.shape)), f"{wanted} for {of.name} "
            f"{described(of)}",
        )  # fmt: skip


def check_multiple(info: TensorInfo, k: int, group: int) -> None:
    """Raises BadCheckpoint where rows end inside a group: the formats have no partial ones."""
    if group < 1 or k % group:
        raise mismatch(
            "rows end inside a group of one scale",
            info,
            f"rows of {k} values in groups of {group}",
            f"a multiple of {group} values in a row",
            "quantize the model again with its rows padded with zeros, or leave this layer out",
        )
