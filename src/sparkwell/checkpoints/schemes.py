"""How a checkpoint's weights are quantized, and whether it holds the tensors a model needs."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sparkwell.checkpoints.header import TensorInfo
from sparkwell.checkpoints.reader import INDEX, SINGLE, Checkpoint
from sparkwell.errors import BadCheckpoint
from sparkwell.formats.fp8 import Fp8Block
from sparkwell.formats.weights import Weight

BLOCK = (128, 128)
SCALE = "_scale_inv"  # X.weight_scale_inv holds the scales of X.weight; they multiply
PLAIN = ("BF16", "F16", "F32", "F64")
SCALE_DTYPES = ("F32", "BF16", "F8_E8M0")  # all exact in fp32
SUPPORTED = "no quantization, or FP8 with a scale per 128 x 128 block (DeepSeek's format)"
OTHER = "choose the model's BF16 or DeepSeek-style FP8 version"
MARKS = {  # endings of tensor names that betray a scheme which config.json does not mention
    ".qweight": "AWQ or GPTQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_2": "ModelOpt NVFP4",
    ".weight_scale": "FP8 with a scale per tensor or channel",
    "_blocks": "MXFP4",
    ".absmax": "bitsandbytes",
}


@dataclass(frozen=True)
class Scheme:
    """kind "fp8_block": DeepSeek-V3's (arXiv 2412.19437, 3.3); w = e4m3 * scale of its block.

    block: [rows, columns] of one scale; None where nothing is quantized.
    pow2_scales: activations' scales are powers of two (scale_fmt "ue8m0": DeepSeek-V3.1 on).
    """

    kind: Literal["none", "fp8_block"]
    block: tuple[int, int] | None = None
    pow2_scales: bool = False


# ---------------------------------------------------------------- which scheme


def scheme(config: Mapping[str, Any], checkpoint: Checkpoint) -> Scheme:
    """The scheme that config.json declares, checked against every tensor's header.

    Which weights are FP8 is decided by the presence of X.weight_scale_inv, never by the config's
    lists of modules, which are wrong in published files.
    Raises BadCheckpoint for any other scheme, and where config.json and the tensors disagree.
    """
    declared = config.get("quantization_config") or config.get("compression_config")
    found = _declared_scheme(declared, checkpoint) if declared else Scheme("none")
    if found.kind == "none":
        _check_unquantized(checkpoint)
    else:
        _check_fp8(checkpoint)
    return found


def _declared_scheme(declared: Any, checkpoint: Checkpoint) -> Scheme:
    fields = declared if isinstance(declared, dict) else {}
    method = fields.get("quant_method")
    block = fields.get("weight_block_size")
    refusals = {
        f"quant_method = {method!r}": method != "fp8",
        f"quant_method = 'fp8' with weight_block_size = {block!r}": block != list(BLOCK),
        f"FP8 of fmt {fields.get('fmt')!r}": fields.get("fmt", "e4m3") != "e4m3",
        f"FP8 with activation_scheme = {fields.get('activation_scheme')!r}": fields.get(
            "activation_scheme", "dynamic"
        )
        != "dynamic",
    }
    for came, refused in refusals.items():
        if refused:
            raise BadCheckpoint(
                "quantization scheme is not supported",
                file=checkpoint.folder / "config.json",
                came=f"quantization_config: {came}",
                wanted=SUPPORTED,
                do=OTHER,
            )
    return Scheme("fp8_block", BLOCK, fields.get("scale_fmt") == "ue8m0")


def _check_unquantized(checkpoint: Checkpoint) -> None:
    outside = checkpoint.folder / "hf_quant_config.json"
    if outside.is_file():
        raise BadCheckpoint(
            "quantization scheme is not supported",
            file=outside,
            came="a ModelOpt checkpoint (hf_quant_config.json)",
            wanted=SUPPORTED,
            do=OTHER,
        )
    for name, info in checkpoint.tensors.items():
        mark = next((MARKS[end] for end in MARKS if name.endswith(end)), None)
        if name.endswith(SCALE) or info.dtype.startswith("F8_"):
            mark = "FP8"
        if mark is not None:
            raise BadCheckpoint(
                f"tensors are quantized ({mark}), but config.json has no quantization_config",
                file=info.file,
                tensor=name,
                came=f"{info.dtype} {list(info.shape)}",
                wanted="plain weights, or a quantization_config that tells how they are quantized",
                do="take config.json from the repository that the weights came from",
            )


def _check_fp8(checkpoint: Checkpoint) -> None:
    """Each e4m3 weight has its scales, each scale its weight, and their shapes fit."""
    pairs = 0
    for name, info in checkpoint.tensors.items():
        if name.endswith(SCALE):
            weight = checkpoint.tensors.get(name.removesuffix(SCALE))
            if weight is None or weight.dtype != "F8_E4M3":
                came = "no such weight" if weight is None else f"weight is {weight.dtype}"
                raise _mismatch("scales without an FP8 weight", info, came, "F8_E4M3 weight")
            _check_scales(weight, info)
            pairs += 1
        elif info.dtype == "F8_E4M3" and name + SCALE not in checkpoint:
            came = f"F8_E4M3 {list(info.shape)} and no {name}{SCALE}"
            raise _mismatch("FP8 weight without scales", info, came, f"{name}{SCALE}")
    if not pairs:
        raise BadCheckpoint(
            "config.json says FP8, but no tensor is quantized",
            file=checkpoint.folder / "config.json",
            came=f"{len(checkpoint.tensors)} tensors, none with {SCALE}",
            wanted=f"X.weight in F8_E4M3 with X.weight{SCALE}",
            do="remove quantization_config from config.json if the weights were dequantized",
        )


def _check_scales(weight: TensorInfo, scales: TensorInfo) -> None:
    if scales.dtype not in SCALE_DTYPES:
        raise _mismatch("scales of a wrong dtype", scales, scales.dtype, " or ".join(SCALE_DTYPES))
    if len(weight.shape) != 2:
        raise _mismatch("FP8 weight is no matrix", weight, str(list(weight.shape)), "[n, k]")
    want = tuple(-(-size // block) for size, block in zip(weight.shape, BLOCK, strict=True))
    if scales.shape != want:
        raise _mismatch(
            "scales of a wrong shape",
            scales,
            str(list(scales.shape)),
            f"{list(want)}: one per 128 x 128 block of {weight.name} {list(weight.shape)}",
        )


def _mismatch(problem: str, info: TensorInfo, came: str, wanted: str) -> BadCheckpoint:
    do = "download the files again; weights and scales may be of different versions"
    return BadCheckpoint(problem, file=info.file, tensor=info.name, came=came, wanted=wanted, do=do)


# ---------------------------------------------------------------- reading


def read_weight(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Weight:
    """The tensor `name`: plain, or with scales if `name`_scale_inv exists.

    shape: what the model needs; [n, k] for an FP8 weight, whose last blocks may be partial.
    Returns a float tensor in its own dtype, or Fp8Block with fp32 scales, on the CPU.
    Raises BadCheckpoint for a tensor that is missing, of another shape, of an integer dtype, for
    e4m3 without scales or scales without e4m3, and for scales that are NaN, infinite or negative.
    """
    info = checkpoint.tensors.get(name)
    if info is not None and info.shape != tuple(shape):
        raise _mismatch("tensor of a wrong shape", info, str(list(info.shape)), str(list(shape)))
    scales = checkpoint.tensors.get(name + SCALE)
    if info is not None and scales is None and info.dtype not in PLAIN:
        if info.dtype == "F8_E4M3":
            raise _mismatch("FP8 weight without scales", info, "F8_E4M3", f"{name}{SCALE}")
        raise _mismatch("tensor of a wrong dtype", info, info.dtype, " or ".join(PLAIN))
    if info is None or scales is None:
        return checkpoint.read(name)
    if info.dtype != "F8_E4M3":
        came = f"weight is {info.dtype}"
        raise _mismatch("scales without an FP8 weight", scales, came, "F8_E4M3 weight")
    _check_scales(info, scales)
    factors = checkpoint.read(scales.name).float()
    bad = ~(torch.isfinite(factors) & (factors >= 0))
    if bool(bad.any()):
        at = bad.nonzero()[0].tolist()
        came = f"{factors[tuple(at)].item()} at {at}, one of {int(bad.sum())} such scales"
        raise _mismatch("scales are not numbers of at least 0", scales, came, "finite, >= 0")
    return Fp8Block(checkpoint.read(name), factors, BLOCK)


# ---------------------------------------------------------------- names and shapes


def check_tensors(
    checkpoint: Checkpoint,
    expected: Mapping[str, tuple[int, ...]],
    *,
    ignored: Callable[[str], bool],
) -> None:
    """Compare the checkpoint's names and shapes with what the model needs, before any data is read.

    expected: name -> shape, FP8 scales left out.
    ignored: tells which surplus names are fine.  Scales of a present weight always are.
    Raises one BadCheckpoint for all that is missing, surplus or of another shape.
    """
    held = checkpoint.tensors
    missing = [name for name in expected if name not in held]
    shaped = [n for n in expected if n in held and held[n].shape != tuple(expected[n])]
    surplus = [
        name
        for name in held
        if name not in expected
        and not (name.endswith(SCALE) and name.removesuffix(SCALE) in held)
        and not ignored(name)
    ]
    counts = {"missing": missing, "surplus": surplus, "of another shape": shaped}
    if not any(counts.values()):
        return
    index = checkpoint.folder / INDEX
    names = [*shaped, *missing, *surplus]
    few = names[:4]
    raise BadCheckpoint(
        "tensors " + ", ".join(f"{len(v)} {k}" for k, v in counts.items() if v),
        file=index if index.is_file() else checkpoint.folder / SINGLE,
        tensor=", ".join(few) + (f" and {len(names) - 4} more" if len(names) > 4 else ""),
        came=_shapes(few, {name: info.shape for name, info in held.items()}),
        wanted=_shapes(few, expected),
        do="check that config.json and the weights belong to the same model and version",
    )


def _shapes(names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(str(list(shapes[name])) if name in shapes else "absent" for name in names)
