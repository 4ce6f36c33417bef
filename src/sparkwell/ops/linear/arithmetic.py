"""In which arithmetic a linear layer is multiplied: `decision` for weights that are tensors."""

from typing import NamedTuple

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.fp8 import Fp8Block
from sparkwell.formats.quantized import Activations, Quantized
from sparkwell.formats.weights import QuantizedTensor, Weight, kind
from sparkwell.ops.device import Device
from sparkwell.ops.linear import decision
from sparkwell.ops.linear.decision import (
    ARITHMETICS,
    PLAIN,
    Decision,
    Described,
    product_like,
)

__all__ = [
    "ARITHMETICS",
    "Decision",
    "Quantizer",
    "activations_of",
    "check_arithmetic",
    "check_pair",
    "decide",
    "made_for",
    "memory_bound_rows",
    "product_like",
    "quantizer",
]


class Quantizer(NamedTuple):
    """How x is quantized; the arguments of `quantize_activations`."""

    activations: Activations
    input_scale: torch.Tensor | None
    group: int


def quantizer(activations: Activations, weight: QuantizedTensor) -> Quantizer | None:
    """Of a decision's activations for the weight; None for "none"."""
    if activations == "none":
        return None
    given = getattr(weight, "input_scale", None)
    return Quantizer(activations, given, weight.block[1] if isinstance(weight, Fp8Block) else 128)


def described(weight: Weight) -> Described:
    """What a decision asks of the weight, or of a stack of them."""
    n, k = weight.shape[-2:]
    if isinstance(weight, torch.Tensor):
        return Described(PLAIN, (n, k), weight.nbytes)
    block_k = weight.block[1] if isinstance(weight, Fp8Block) else 0
    activations = getattr(weight, "activations", "none")
    return Described(kind(weight), (n, k), weight.nbytes, activations, block_k)


def memory_bound_rows(weight: QuantizedTensor, device: Device) -> int:
    """Rows of x up to which reading the weight takes longer than 16-bit products with it."""
    return decision.rows_read(described(weight), device)


def decide(m: int, weight: Weight, device: Device, asked: str = "auto") -> Decision:
    """The arithmetic for `m` rows of x on `device`.

    asked: one of ARITHMETICS; "auto": x is left as it is where the product is memory-bound, where
    the checkpoint asks for nothing else, and where there is no kernel for what it asks for.
    Raises BadInput for an unknown name or one of another width, Unsupported with the reason where
    the arithmetic asked for has no kernel for this weight on this device.
    """
    check_arithmetic(weight, asked)
    return decision.choose(m, described(weight), device, asked)


def check_arithmetic(weight: Weight, asked: str) -> None:
    """Raises BadInput for an unknown arithmetic, or one that is not the weight's."""
    if asked not in ARITHMETICS:
        raise BadInput(f"linear: arithmetic is {asked!r}, want one of {', '.join(ARITHMETICS)}")
    if asked == "auto":
        return
    bits = described(weight).bits
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
    return decision.activations_of(arithmetic, described(weight))


def made_for(weight: QuantizedTensor) -> str:
    """The arithmetic that the checkpoint's makers meant; of activations that nothing here
    quantizes (MXFP4), the one that leaves them as they are."""
    return decision.meant(described(weight))
