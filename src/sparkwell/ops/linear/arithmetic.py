"""In which arithmetic a linear layer is multiplied: the weight as stored, x as it is or quantized.

A few rows of x take the time that the weight takes from memory, so x is left as it is.  From as
many rows on as keep 16-bit matrix units busy for that long, x is quantized as the checkpoint's
makers did, and faster units multiply.
"""

from dataclasses import dataclass
from functools import cache

import torch

from sparkwell.errors import BadInput, Unsupported
from sparkwell.formats.fp8 import Fp8Block, Fp8Rows
from sparkwell.formats.mxfp4 import Mxfp4
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.formats.quantized import Activations, Quantized
from sparkwell.formats.weights import QuantizedTensor, Weight, kind
from sparkwell.hardware.gpus import GPUS, Gpu, match_device_name
from sparkwell.hardware.targets import Feature
from sparkwell.ops.device import Device

ARITHMETICS = ("auto", "w4a16", "w4a8", "w4a4", "w8a16", "w8a8")
STEP = 128  # columns that products of FP8 take at a time
ALIGNED = 16  # columns that are copied together


@dataclass(frozen=True)
class Decision:
    """arithmetic: "w4a16" and so on, "w16a16" for plain weights.

    activations: how x is quantized for it; "none": it is not.  why: in words.
    """

    arithmetic: str
    activations: Activations
    why: str


@cache
def product_like(device: Device) -> Gpu:
    """The product whose figures stand for a device: itself, or one of its target and SM count."""
    known = match_device_name(device.product) if device.product else None
    if known is not None and known.target is device.target:
        return known
    alike = [gpu for gpu in GPUS if gpu.target is device.target]
    if not alike:
        raise BadInput(f"no product of target {device.target.name} is known")
    return min(alike, key=lambda gpu: abs(gpu.sms.value - device.sms))


def memory_bound_rows(weight: QuantizedTensor, device: Device) -> int:
    """Rows of x up to which reading the weight takes longer than 16-bit products with it."""
    gpu, (n, k) = product_like(device), weight.shape
    seconds = weight.nbytes / gpu.bandwidth.value
    return int(seconds * gpu.peaks["bf16"].value / max(1, 2 * n * k))


def decide(m: int, weight: Weight, device: Device, asked: str = "auto") -> Decision:
    """The arithmetic for `m` rows of x on `device`.

    asked: one of ARITHMETICS; "auto": x is left as it is where the product is memory-bound, where
    the checkpoint asks for nothing else, and where there is no kernel for what it asks for.
    Raises BadInput for an unknown name or one of another width, Unsupported with the reason where
    the arithmetic asked for has no kernel for this weight on this device.
    """
    check_arithmetic(weight, asked)
    if isinstance(weight, torch.Tensor):
        return Decision("w16a16", "none", "a plain weight")
    plain = f"w{_bits(weight)}a16"
    if asked == plain:
        return Decision(plain, "none", "asked for")
    if asked != "auto":
        if lacking := _lacking(asked, weight, device):
            raise Unsupported(
                "linear",
                f"{asked} of {kind(weight)} {list(weight.shape)} on {device.target.name}",
                {asked: lacking},
                f'use arithmetic="{plain}" or "auto"',
            )
        return Decision(asked, activations_of(asked, weight), "asked for")
    wanted = made_for(weight)
    if wanted == plain:
        return Decision(plain, "none", f"made for activations {weight.activations!r}")
    if lacking := _lacking(wanted, weight, device) or _slower(wanted, device):
        return Decision(plain, "none", f"not {wanted}: {lacking}")
    rows, gpu = memory_bound_rows(weight, device), product_like(device).title
    if m <= rows:
        return Decision(plain, "none", f"{m} rows: memory-bound up to {rows} on {gpu}")
    return Decision(wanted, activations_of(wanted, weight), f"{m} rows: over {rows} on {gpu}")


def check_arithmetic(weight: Weight, asked: str) -> None:
    """Raises BadInput for an unknown arithmetic, or one that is not the weight's."""
    if asked not in ARITHMETICS:
        raise BadInput(f"linear: arithmetic is {asked!r}, want one of {', '.join(ARITHMETICS)}")
    if asked == "auto":
        return
    bits = _bits(weight)
    fitting = [name for name in ARITHMETICS if name.startswith(f"w{bits}a")]
    if asked not in fitting:
        raise BadInput(
            f"linear: arithmetic is {asked!r} for a {kind(weight)} weight of {bits} bits, want "
            f"{' or '.join(['auto', *fitting])}"
        )


def check_pair(x: Quantized, weight: Weight) -> None:
    """Raises BadInput where no product takes these two formats."""
    pairs = {("Fp8Rows", "Fp8Rows"), ("Fp8Rows", "Nvfp4"), ("Fp8Rows", "Mxfp4")}
    pairs.add(("Nvfp4", "Nvfp4"))
    if len(x.shape) != 2:
        raise BadInput(f"linear: x is {type(x).__name__} {list(x.shape)}, want [m, K]")
    if isinstance(x, Fp8Block) and isinstance(weight, Fp8Block):
        if x.block != (1, weight.block[1]):
            raise BadInput(
                f"linear: x has a scale per {x.block[0]} rows and {x.block[1]} columns, want one "
                f"per row and {weight.block[1]} columns, as the weight's blocks are wide"
            )
    elif (type(x).__name__, kind(weight)) not in pairs:
        raise BadInput(
            f"linear: x is {type(x).__name__} and the weight {kind(weight)}; want Fp8Rows with "
            "Fp8Rows, Nvfp4 or Mxfp4, Fp8Block with Fp8Block, Nvfp4 with Nvfp4"
        )


def activations_of(arithmetic: str, weight: Weight) -> Activations:
    """How x is quantized for it, with the checkpoint's scale where it has one."""
    if arithmetic == "w4a4":
        return "nvfp4"
    if arithmetic not in ("w8a8", "w4a8"):
        return "none"
    if isinstance(weight, Fp8Block):
        return "fp8-group"
    if isinstance(weight, Quantized) and getattr(weight, "activations", "") == "fp8-tensor":
        return "fp8-tensor"
    return "fp8-token"


def _bits(weight: Weight) -> int:
    if isinstance(weight, torch.Tensor):
        return 16
    return 8 if isinstance(weight, Fp8Block | Fp8Rows) else 4


def made_for(weight: QuantizedTensor) -> str:
    """The arithmetic that the checkpoint's makers meant; of activations that nothing here
    quantizes (MXFP4), the one that leaves them as they are."""
    activations: str = getattr(weight, "activations", "none")
    bits = _bits(weight)
    if activations.startswith("fp8"):
        return f"w{bits}a8"
    return "w4a4" if activations == "nvfp4" and bits == 4 else f"w{bits}a16"


def _lacking(arithmetic: str, weight: QuantizedTensor, device: Device) -> str | None:
    """Why no kernel multiplies so; None where one does."""
    if arithmetic == "w4a4" and not isinstance(weight, Nvfp4):
        return f"no kernel for {kind(weight)} weights, only for Nvfp4"
    if arithmetic == "w4a8" and not isinstance(weight, Nvfp4 | Mxfp4):
        return f"no kernel for {kind(weight)} weights, only for Nvfp4 and Mxfp4"
    if isinstance(weight, Fp8Block) and weight.block[1] % STEP:
        return f"blocks are {weight.block[1]} columns wide, want a multiple of {STEP}"
    if weight.shape[1] % ALIGNED:
        return f"K is {weight.shape[1]}, want a multiple of {ALIGNED}"
    needs = {"w4a4": Feature.FP4_BLOCK_MMA, "w4a8": Feature.FP8_MMA}.get(arithmetic, Feature(0))
    return _missing(needs, device)


def _slower(arithmetic: str, device: Device) -> str | None:
    """Why x is better left as it is, although there is a kernel."""
    return _missing(Feature.FP8_MMA if arithmetic == "w8a8" else Feature(0), device)


def _missing(needs: Feature, device: Device) -> str | None:
    names = ", ".join(str(feature.name) for feature in device.target.missing(needs))
    return f"{device.target.name} has no {names}" if names else None
