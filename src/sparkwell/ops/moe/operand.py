"""A stack of experts' weights as kernels take it: tensors of bytes, their strides, the kind."""

from dataclasses import dataclass
from typing import Any

import torch

from sparkwell.formats.fp8 import Fp8Block, Fp8Rows
from sparkwell.formats.int4 import Int4Group
from sparkwell.formats.mxfp4 import GROUP as MXFP4_GROUP
from sparkwell.formats.mxfp4 import Mxfp4
from sparkwell.formats.nvfp4 import GROUP as NVFP4_GROUP
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.formats.weights import Weight
from sparkwell.ops.ragged import unit_stride


@dataclass(frozen=True)
class Operand:
    """kind: as the kernels call the format.  values: floats, or bytes of codes.

    group: columns that share a scale.  block_rows: rows that do.
    order: where a column of x goes, the same for all experts; None: it stays.
    """

    kind: str
    values: torch.Tensor
    scales: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    row_scales: torch.Tensor | None = None
    group: int = 1
    block_rows: int = 1
    order: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Experts, rows and columns of the weight itself."""
        experts, rows, width = self.values.shape
        return experts, rows, width * (2 if self.kind in ("nvfp4", "mxfp4", "int4") else 1)

    @property
    def factored(self) -> int:
        """Columns whose sums share a factor; 0: scales are part of the product's operand."""
        return self.group if self.kind in ("fp8-block", "int4") else 0

    @property
    def pointers(self) -> tuple[torch.Tensor | None, ...]:
        """The tensors, in the kernel's order."""
        return self.values, self.scales, self.zeros, self.row_scales

    @property
    def strides(self) -> tuple[int, ...]:
        """From expert to expert and row to row, in the kernel's order."""
        scales = _two(self.scales)
        return (*_two(self.values), *scales, *_two(self.zeros), _two(self.row_scales)[0])

    @property
    def aligned(self) -> bool:
        """Whether every row of codes begins at a multiple of 16 bytes."""
        size = self.values.element_size()
        return all(step * size % 16 == 0 for step in self.values.stride()[:-1])

    @property
    def stacked(self) -> bool:
        """Whether rows of codes and of scales begin at 16 n bytes and have one distance each."""
        stacks = [t for t in (self.values, self.scales) if t is not None]
        return all(
            t.ndim == 3
            and t.storage_offset() * t.element_size() % 16 == 0
            and t.stride(1) * t.element_size() % 16 == 0
            and t.stride(0) == t.shape[1] * t.stride(1)
            for t in stacks
        )


def _two(t: torch.Tensor | None) -> tuple[int, int]:
    return (0, 0) if t is None else (t.stride(0), t.stride(1) if t.ndim > 2 else 0)


def operand(weight: Weight) -> Operand:
    """[E, n, k] in any format."""
    fields: dict[str, Any]
    if isinstance(weight, torch.Tensor):
        return Operand("float", unit_stride(weight))
    if isinstance(weight, Fp8Block):
        rows, group = weight.block
        kind, codes = "fp8-block", weight.values
        fields = {"scales": weight.scales, "group": group, "block_rows": rows}
    elif isinstance(weight, Fp8Rows):
        kind, codes, fields = "fp8-rows", weight.values, {"scales": weight.scales}
    elif isinstance(weight, Nvfp4):
        kind, codes = "nvfp4", weight.codes
        scales = unit_stride(weight.scales).view(torch.uint8)
        fields = {"scales": scales, "row_scales": weight.row_scales, "group": NVFP4_GROUP}
    elif isinstance(weight, Mxfp4):
        kind, codes = "mxfp4", weight.codes
        fields = {"scales": weight.scales, "group": MXFP4_GROUP}
    else:
        assert isinstance(weight, Int4Group)
        kind, codes = "int4", weight.codes
        zeros = None if weight.zeros is None else unit_stride(weight.zeros)
        fields = {"scales": weight.scales, "group": weight.group, "zeros": zeros}
        fields["order"] = weight.order
    for name in ("scales", "row_scales"):
        if name in fields:
            fields[name] = unit_stride(fields[name])
    return Operand(kind, unit_stride(codes).view(torch.uint8), **fields)
