"""In which arithmetic a weight is multiplied, decided by what it is, not by its values: no torch.

A few rows of x take the time that the weight takes from memory, so x is left as it is.  From as
many rows on as keep 16-bit matrix units busy for that long, x is quantized as the checkpoint's
makers did, and faster units multiply.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from sparkwell.errors import BadInput, Unsupported
from sparkwell.hardware.gpus import GPUS, Gpu, match_device_name
from sparkwell.hardware.targets import Feature
from sparkwell.ops.device import Device

if TYPE_CHECKING:
    from sparkwell.formats.quantized import Activations

ARITHMETICS = ("auto", "w4a16", "w4a8", "w4a4", "w8a16", "w8a8")
STEP = 128  # columns that products of FP8 take at a time
ALIGNED = 16  # columns that are copied together
PLAIN = "plain"
_EIGHT = ("Fp8Block", "Fp8Rows")


@dataclass(frozen=True)
class Described:
    """What a decision asks of a weight [n, k].

    kind: its format as `formats.kind` names it, or PLAIN.  nbytes: with its scales.
    activations: what it was made for.  block_k: columns of a block of FP8; 0: it has none.
    """

    kind: str
    shape: tuple[int, int]
    nbytes: int
    activations: str = "none"
    block_k: int = 0

    @property
    def bits(self) -> int:
        """Of a value, scales aside."""
        return 16 if self.kind == PLAIN else 8 if self.kind in _EIGHT else 4


@dataclass(frozen=True)
class Decision:
    """arithmetic: "w4a16" and so on, "w16a16" for plain weights.

    activations: how x is quantized for it; "none": it is not.  why: in words.
    """

    arithmetic: str
    activations: "Activations"
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


def rows_read(weight: Described, device: Device) -> int:
    """Rows of x up to which reading the weight takes longer than 16-bit products with it."""
    gpu, (n, k) = product_like(device), weight.shape
    seconds = weight.nbytes / gpu.bandwidth.value
    return int(seconds * gpu.peaks["bf16"].value / max(1, 2 * n * k))


def choose(m: int, weight: Described, device: Device, asked: str = "auto") -> Decision:
    """The arithmetic for `m` rows of x on `device`; see `arithmetic.decide`."""
    if weight.kind == PLAIN:
        return Decision("w16a16", "none", "a plain weight")
    plain = f"w{weight.bits}a16"
    if asked == plain:
        return Decision(plain, "none", "asked for")
    if asked != "auto":
        if refused := lacking(asked, weight, device):
            raise Unsupported(
                "linear",
                f"{asked} of {weight.kind} {list(weight.shape)} on {device.target.name}",
                {asked: refused},
                f'use arithmetic="{plain}" or "auto"',
            )
        return Decision(asked, activations_of(asked, weight), "asked for")
    wanted = meant(weight)
    if wanted == plain:
        return Decision(plain, "none", f"made for activations {weight.activations!r}")
    if refused := lacking(wanted, weight, device) or _slower(wanted, device):
        return Decision(plain, "none", f"not {wanted}: {refused}")
    rows, gpu = rows_read(weight, device), product_like(device).title
    if m <= rows:
        return Decision(plain, "none", f"{m} rows: memory-bound up to {rows} on {gpu}")
    return Decision(wanted, activations_of(wanted, weight), f"{m} rows: over {rows} on {gpu}")


def meant(weight: Described) -> str:
    """The arithmetic that the checkpoint's makers meant; of activations that nothing here
    quantizes (MXFP4), the one that leaves them as they are."""
    if weight.activations.startswith("fp8"):
        return f"w{weight.bits}a8"
    return "w4a4" if weight.activations == "nvfp4" and weight.bits == 4 else f"w{weight.bits}a16"


def activations_of(arithmetic: str, weight: Described) -> "Activations":
    """How x is quantized for it, with the checkpoint's scale where it has one."""
    if arithmetic == "w4a4":
        return "nvfp4"
    if arithmetic not in ("w8a8", "w4a8"):
        return "none"
    if weight.kind == "Fp8Block":
        return "fp8-group"
    return "fp8-tensor" if weight.activations == "fp8-tensor" else "fp8-token"


def lacking(arithmetic: str, weight: Described, device: Device) -> str | None:
    """Why no kernel multiplies so; None where one does."""
    if arithmetic == "w4a4" and weight.kind != "Nvfp4":
        return f"no kernel for {weight.kind} weights, only for Nvfp4"
    if arithmetic == "w4a8" and weight.kind not in ("Nvfp4", "Mxfp4"):
        return f"no kernel for {weight.kind} weights, only for Nvfp4 and Mxfp4"
    if weight.block_k % STEP:
        return f"blocks are {weight.block_k} columns wide, want a multiple of {STEP}"
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
