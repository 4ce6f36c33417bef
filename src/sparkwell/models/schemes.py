"""Schemes that plain weights are quantized into while they are loaded.

What a scheme quantizes are the weights of linear layers and of experts.  Plain stay embeddings and
lm_head, norms, routers, the indexer's weights_proj and MLA's kv_b_proj, which is cut into heads.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.fp8 import Fp8Block, quantize_fp8_block
from sparkwell.formats.nvfp4 import GROUP, Nvfp4, quantize_nvfp4
from sparkwell.formats.quantized import Activations


@dataclass(frozen=True)
class Scheme:
    """quantize: makes a weight [n, k] float; None: weights stay as they are.

    activations: how x is quantized for the products, "none": not at all.
    step: what k must be a multiple of.  spares: parts of the names of weights that stay plain.
    words: for people.
    """

    name: str
    words: str
    quantize: Callable[[torch.Tensor], Fp8Block | Nvfp4] | None = None
    activations: Activations = "none"
    step: int = 1
    spares: tuple[str, ...] = ()

    def takes(self, name: str) -> bool:
        """Whether the weight of this name is one to quantize."""
        return self.quantize is not None and not any(part in name for part in self.spares)

    def quantized(self, weight: torch.Tensor) -> Fp8Block | Nvfp4:
        """The weight in this scheme.  Raises BadInput where values are not finite."""
        assert self.quantize is not None
        return replace(self.quantize(weight), activations=self.activations)


INDEXER = (".indexer.",)  # its choice of keys is worth more than its few bytes
SEARCHED = partial(quantize_nvfp4, search=True)
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("bf16", "plain weights, as the checkpoint holds them"),
        Scheme(
            "fp8",
            "FP8 weights in blocks of 128 x 128, activations in groups of 128",
            quantize_fp8_block,
            "fp8-group",
        ),
        Scheme("nvfp4", "NVFP4 weights", SEARCHED, step=GROUP, spares=INDEXER),
        Scheme(
            "nvfp4-w4a4",
            "NVFP4 weights and activations",
            SEARCHED,
            "nvfp4",
            step=GROUP,
            spares=INDEXER,
        ),
    )
}


def find_scheme(name: str) -> Scheme:
    """The scheme of this name.  Raises BadInput for another."""
    if name not in SCHEMES:
        raise BadInput(f"scheme is {name!r}, want one of {', '.join(SCHEMES)}")
    return SCHEMES[name]
