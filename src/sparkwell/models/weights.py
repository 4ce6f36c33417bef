"""Where a model's weights come from: a checkpoint, or a recorder that only notes what it asks for.

A model's constructor asks for every tensor by name and shape.  Run with a `Recorder` it yields the
table of expected tensors; run with `CheckpointWeights` it loads them.  So the names stand once.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.checkpoints.schemes import read_weight, stored_bytes
from sparkwell.formats.fp8 import Fp8Block
from sparkwell.formats.weights import Weight, dequantize

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class Weights(Protocol):
    """What a model's constructor may ask for."""

    def tensor(self, name: str, shape: tuple[int, ...], *, fp32: bool = False) -> torch.Tensor:
        """A plain tensor in the model's dtype, or in fp32."""
        ...

    def linear(self, name: str, n: int, k: int) -> Weight:
        """`name`.weight [n, k], in whatever format the checkpoint holds it."""
        ...

    def dense(self, name: str, n: int, k: int) -> torch.Tensor:
        """`name`.weight [n, k], dequantized whole to the model's dtype."""
        ...

    def stack(self, rows: Sequence[Sequence[str]], n: int, k: int) -> Weight:
        """[len(rows), len(rows[0])*n, k]: row i is its weights [n, k], one below the other."""
        ...


class Recorder:
    """Notes each tensor asked for in `expected`, and answers with meta tensors."""

    def __init__(self) -> None:
        self.expected: dict[str, tuple[int, ...]] = {}

    def tensor(self, name: str, shape: tuple[int, ...], *, fp32: bool = False) -> torch.Tensor:
        self.expected[name] = shape
        return torch.empty(shape, dtype=torch.float32 if fp32 else torch.bfloat16, device="meta")

    def linear(self, name: str, n: int, k: int) -> Weight:
        return self.dense(name, n, k)

    def dense(self, name: str, n: int, k: int) -> torch.Tensor:
        return self.tensor(f"{name}.weight", (n, k))

    def stack(self, rows: Sequence[Sequence[str]], n: int, k: int) -> Weight:
        for row in rows:
            for name in row:
                self.expected[f"{name}.weight"] = (n, k)
        return torch.empty((len(rows), len(rows[0]) * n, k), dtype=torch.bfloat16, device="meta")


class CheckpointWeights:
    """Reads each tensor when it is asked for: one tensor of the file in host memory at a time.

    widen_fp8: FP8 weights become `dtype` on the way, for devices that no kernel multiplies them on.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: str | torch.device,
        widen_fp8: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.checkpoint, self.dtype, self.device = checkpoint, dtype, device
        self.widen_fp8 = widen_fp8
        self._progress, self._done = progress, 0
        self._total = sum(info.nbytes for info in checkpoint.tensors.values())

    def _read(self, name: str, shape: tuple[int, ...]) -> Weight:
        weight = read_weight(self.checkpoint, name, shape)
        self._done += stored_bytes(self.checkpoint, name)
        if self._progress is not None:
            self._progress(self._done, self._total)
        return weight

    def tensor(self, name: str, shape: tuple[int, ...], *, fp32: bool = False) -> torch.Tensor:
        dtype = torch.float32 if fp32 else self.dtype
        return dequantize(self._read(name, shape), dtype).to(self.device)

    def linear(self, name: str, n: int, k: int) -> Weight:
        weight = self._read(f"{name}.weight", (n, k))
        if self.widen_fp8 or not isinstance(weight, Fp8Block):
            return dequantize(weight.to(self.device), self.dtype)
        return weight.to(self.device)

    def dense(self, name: str, n: int, k: int) -> torch.Tensor:
        return self.tensor(f"{name}.weight", (n, k))

    def stack(self, rows: Sequence[Sequence[str]], n: int, k: int) -> Weight:
        # Rows below one another share FP8 blocks unless n ends on a block's edge.  Where it does
        # not, or some of the experts are not FP8, the stack is dequantized: exact, only larger.
        names = [f"{name}.weight" for row in rows for name in row]
        fp8 = all(f"{name}_scale_inv" in self.checkpoint for name in names)
        if self.widen_fp8 or not fp8 or (n % 128 and len(rows[0]) > 1):
            return self._stack_dense(rows, n, k)
        shape = (len(rows), len(rows[0]), n, k)
        values = torch.empty(shape, dtype=torch.float8_e4m3fn, device=self.device)
        blocks = (*shape[:2], -(-n // 128), -(-k // 128))
        scales = torch.empty(blocks, dtype=torch.float32, device=self.device)
        for i, row in enumerate(rows):
            for j, name in enumerate(row):
                weight = self._read(f"{name}.weight", (n, k))
                assert isinstance(weight, Fp8Block)
                values[i, j].copy_(weight.values)
                scales[i, j].copy_(weight.scales)
        return Fp8Block(values.flatten(1, 2), scales.flatten(1, 2))

    def _stack_dense(self, rows: Sequence[Sequence[str]], n: int, k: int) -> torch.Tensor:
        shape = (len(rows), len(rows[0]), n, k)
        out = torch.empty(shape, dtype=self.dtype, device=self.device)
        for i, row in enumerate(rows):
            for j, name in enumerate(row):
                weight = self._read(f"{name}.weight", (n, k)).to(self.device)
                out[i, j].copy_(dequantize(weight, self.dtype))
        return out.flatten(1, 2)
