"""A case: inputs of a public op, and how its result is compared with the op's reference.

One table serves the interpreter's tests, the compiler's checks, runs on a GPU and timing.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from sparkwell.hardware.targets import Feature
from sparkwell.ops import OPS
from sparkwell.ops.device import device_of
from sparkwell.ops.launch import interpreting
from sparkwell.testing import assert_matches

Inputs = dict[str, Any]  # keyword arguments of the public op


@dataclass(frozen=True)
class Maker:
    """Draws a case's inputs on `device`, the same values for the same seed.

    On the "meta" device tensors have a shape only.  hostile: float tensors come as strided views
    into a buffer of NaN, lists of integers as every second element of a list.
    """

    device: torch.device
    seed: int = 0
    hostile: bool = False
    generator: torch.Generator | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.device.type != "meta":
            generator = torch.Generator(self.device).manual_seed(self.seed)
            object.__setattr__(self, "generator", generator)

    def randn(
        self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0
    ) -> torch.Tensor:
        """Normal values times `scale`."""
        x = torch.randn(shape, device=self.device, generator=self.generator)
        return self._place((x * scale).to(dtype))

    def randint(
        self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int32
    ) -> torch.Tensor:
        """Integers low..high-1."""
        options: Any = {"device": self.device, "generator": self.generator}
        return self._apart(torch.randint(low, high, shape, **options).to(dtype))

    def tensor(self, values: Any, dtype: torch.dtype) -> torch.Tensor:
        """These values."""
        return self._apart(torch.tensor(values, dtype=dtype).to(self.device))

    def permutation(self, n: int) -> torch.Tensor:
        """0..n-1 in a random order, int64."""
        return self._apart(torch.randperm(n, device=self.device, generator=self.generator))

    def _apart(self, x: torch.Tensor) -> torch.Tensor:
        """Integers: a list of them comes with every second element of a longer one."""
        if not self.hostile or x.device.type == "meta" or x.ndim != 1:
            return x
        longer = x.new_full((2 * len(x),), 2147480000)
        longer[::2] = x
        return longer[::2]

    def _place(self, x: torch.Tensor) -> torch.Tensor:
        if not self.hostile or x.device.type == "meta" or x.ndim == 0:
            return x
        margin = 8  # keeps 16-byte rows aligned
        buffer = x.new_full([n + 2 * margin for n in x.shape], float("nan"))
        view = buffer[tuple(slice(margin, margin + n) for n in x.shape)]
        view.copy_(x)
        return view


@dataclass(frozen=True)
class Timing:
    """What timing a case needs to know.

    flops: operations of the formula.  nbytes: what one call must move: each input byte that it
    reads and each output byte, once.
    redraw: inputs of one call -> the inputs of another that a model changes between calls (query,
    indices); what it leaves out stays the same tensors.  None: every call has all inputs anew.
    math: "bf16" or "fp8", the fastest tensor-core arithmetic that the formula allows.
    """

    flops: int
    nbytes: int
    redraw: Callable[[Maker, Inputs], Inputs] | None = None
    math: str = "bf16"


@dataclass(frozen=True)
class Case:
    """One call of a public op.

    op: its name in OPS.  size: "small" runs everywhere, the interpreter too; "model" has the
    shapes of a published model and runs on a GPU (or is compiled only); "timed" ones, with
    `timing`, are those of the speed table: large pools, and run by `sparkwell bench`.
    tolerances: (op class, format) in TOLERANCES of each tensor the op returns, in order.
    check: replaces that comparison where the result is no tensor to be close to another:
    (inputs, got, want), raises AssertionError.
    mutates: name of the cache that the op writes; its bytes are what is compared then.
    """

    op: str
    name: str
    make: Callable[[Maker], Inputs]
    size: str = "small"
    tolerances: tuple[tuple[str, str], ...] = (("elementwise", "fp32"),)
    check: Callable[[Inputs, Any, Any], None] | None = None
    timing: Timing | None = None
    mutates: str | None = None

    def call(self, inputs: Inputs, backend: str) -> Any:
        """What the public op returns for `inputs` by `backend`, or the cache bytes it leaves."""
        out = getattr(importlib.import_module(OPS[self.op]), self.op)(**inputs, backend=backend)
        return inputs[self.mutates].pages if self.mutates else out

    def compare(self, inputs: Inputs, got: Any, want: Any) -> None:
        """Raises AssertionError where `got` is not `want`, the reference's result."""
        if self.check is not None:
            self.check(inputs, got, want)
            return
        got, want = (x if isinstance(x, tuple) else (x,) for x in (got, want))
        assert len(got) == len(want) == len(self.tolerances), f"{self.op}: results differ in number"
        for i, (g, w, limit) in enumerate(zip(got, want, self.tolerances, strict=True)):
            assert_matches(g, w.to(g.device), *limit, label=f"{self.op} {self.name} [{i}]")


def computes_with(device: torch.device, feature: Feature) -> bool:
    """Whether kernels for `device` run on hardware that has `feature`; an interpreter has none."""
    return not interpreting() and not device_of(device).target.missing(feature)


__all__ = ["Case", "Inputs", "Maker", "Timing", "computes_with"]
