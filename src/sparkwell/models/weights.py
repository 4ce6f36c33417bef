"""Where a model's weights come from: a checkpoint, or a recorder that only notes what it asks for.

A model's constructor asks for every tensor by name and shape.  Run with a `Recorder` it yields the
table of expected tensors; run with `CheckpointWeights` it loads them.  So the names stand once.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.checkpoints.schemes import read_weight, stored_bytes
from sparkwell.checkpoints.survey import stored_weights
from sparkwell.errors import BadCheckpoint, BadInput
from sparkwell.formats.fp8 import Fp8Block, Fp8Rows
from sparkwell.formats.quantized import Quantized
from sparkwell.formats.weights import (
    QuantizedTensor,
    Weight,
    dequantize,
    join,
    kind,
    unjoinable,
    unstackable,
)
from sparkwell.models.schemes import Scheme
from sparkwell.ops.device import Device, device_of
from sparkwell.ops.linear.arithmetic import decide, memory_bound_rows
from sparkwell.ops.moe.decision import in_words

Progress = Callable[[int, int], None]  # bytes done, bytes in all
ANY = frozenset({"Fp8Block", "Fp8Rows", "Nvfp4", "Mxfp4", "Int4Group"})
MANY = 1 << 20  # rows of x: beyond what is memory-bound anywhere
NO_KERNEL = "no kernel multiplies them as they are"
LOST_SCALES = (
    "static scales of activations are left out: some differ within an expert, or are missing"
)


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
    """Reads each tensor when it is asked for: those of one product in host memory at a time.

    linear, experts: the formats that stay as they are stored in a layer, in a stack of experts;
    other quantized weights become `dtype` on the way.
    scheme: what plain weights of layers and experts become; None: they stay plain.
    remarks: what a user should know of the way they were loaded, and of how many weights.
    arithmetic: how layers are multiplied on a GPU, and how many.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: str | torch.device,
        linear: frozenset[str] = ANY,
        experts: frozenset[str] = ANY,
        scheme: Scheme | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.checkpoint, self.dtype, self.device = checkpoint, dtype, device
        self.scheme = scheme
        self.kept_linear, self.kept_experts = linear, experts
        self.remarks: Counter[str] = Counter()
        self.arithmetic: Counter[str] = Counter()
        self._progress, self._counted, self._done = progress, set[str](), 0
        self._total = sum(info.nbytes for info in checkpoint.tensors.values())

    def _read(self, name: str, shape: tuple[int, ...]) -> Weight:
        weight = read_weight(self.checkpoint, name, shape)
        if name not in self._counted:
            self._counted.add(name)
            self._done += stored_bytes(self.checkpoint, name)
            if self._progress is not None:
                self._progress(self._done, self._total)
        return weight

    def _widened(self, weight: QuantizedTensor, why: str) -> torch.Tensor:
        self.remarks[f"{kind(weight)} weights become {_named(self.dtype)}: {why}"] += 1
        return dequantize(weight, self.dtype)

    def _quantizes(self, names: Sequence[str], k: int) -> bool:
        """Whether the scheme is for plain weights of these names and rows of k values."""
        scheme = self.scheme
        if scheme is None or not scheme.takes(names[0]):
            return False
        if k % scheme.step:
            stays = f"weights stay plain: {scheme.name} wants rows of a multiple of {scheme.step}"
            self.remarks[stays] += len(names)
            return False
        return True

    def _in_scheme(self, names: Sequence[str], weight: torch.Tensor) -> QuantizedTensor:
        """The plain weight as the scheme has it; `names`: what it consists of, row by row."""
        assert self.scheme is not None
        try:
            return self.scheme.quantized(weight)
        except BadInput as error:
            raise BadCheckpoint(
                f"weights that {self.scheme.name} cannot hold",
                file=self.checkpoint.folder,
                tensor=", ".join(f"{name}.weight" for name in names),
                came=str(error),
                wanted="finite values",
                do="fetch the files anew; if they are the same, the checkpoint is broken",
            ) from error

    def tensor(self, name: str, shape: tuple[int, ...], *, fp32: bool = False) -> torch.Tensor:
        dtype = torch.float32 if fp32 else self.dtype
        return dequantize(self._read(name, shape), dtype).to(self.device)

    def linear(self, name: str, n: int, k: int) -> Weight:
        weight: Weight = self._read(f"{name}.weight", (n, k)).to(self.device)
        if isinstance(weight, torch.Tensor) and self._quantizes([name], k):
            weight = self._in_scheme([name], weight)
        if isinstance(weight, torch.Tensor):
            return weight.to(self.dtype)
        if kind(weight) in self.kept_linear:
            if torch.device(self.device).type != "cpu":  # where the reference multiplies
                how = arithmetic_of(weight, device_of(torch.device(self.device)))
                self.arithmetic[f"{kind(weight)} layers are multiplied in {how}"] += 1
            return weight
        return self._widened(weight, NO_KERNEL)

    def dense(self, name: str, n: int, k: int) -> torch.Tensor:
        return self.tensor(f"{name}.weight", (n, k))

    def stack(self, rows: Sequence[Sequence[str]], n: int, k: int) -> Weight:
        stored = stored_weights(self.checkpoint)
        quantized = [f"{name}.weight" in stored for row in rows for name in row]
        if not any(quantized) and self._quantizes([name for row in rows for name in row], k):
            return self._stack_in_scheme(rows, n, k)
        if not all(quantized):
            mixed = "others of their stack are not quantized" if any(quantized) else ""
            return self._stack_dense(rows, n, k, mixed)
        pile = _Pile(len(rows), self.device)
        for row in rows:
            parts = [self._read(f"{name}.weight", (n, k)) for name in row]
            weights = [part for part in parts if isinstance(part, Quantized)]
            if kind(parts[0]) not in self.kept_experts:
                return self._stack_dense(rows, n, k, NO_KERNEL)
            if why := pile.put(weights):
                return self._stack_dense(rows, n, k, f"they can't be stacked, {why}")
        if pile.lost_scales:
            self.remarks[LOST_SCALES] += len(rows)
        return self._noted(pile.whole())

    def _stack_in_scheme(self, rows: Sequence[Sequence[str]], n: int, k: int) -> Weight:
        """Each expert's weights are joined first: they share blocks, and a factor of the tensor."""
        pile = _Pile(len(rows), self.device)
        for row in rows:
            parts = [self._read(f"{name}.weight", (n, k)).to(self.device) for name in row]
            pile.put([self._in_scheme(row, torch.cat([dequantize(part) for part in parts]))])
        whole = pile.whole()
        if kind(whole) in self.kept_experts:
            return self._noted(whole)
        return self._widened(whole, NO_KERNEL)

    def _noted(self, stack: QuantizedTensor) -> QuantizedTensor:
        """The stack; how a GPU multiplies it goes to the log."""
        if torch.device(self.device).type != "cpu":
            how = experts_arithmetic_of(stack, device_of(torch.device(self.device)))
            self.arithmetic[f"{kind(stack)} stacks of experts are multiplied in {how}"] += 1
        return stack

    def _stack_dense(self, rows: Sequence[Sequence[str]], n: int, k: int, why: str) -> torch.Tensor:
        shape = (len(rows), len(rows[0]), n, k)
        out = torch.empty(shape, dtype=self.dtype, device=self.device)
        for i, row in enumerate(rows):
            for j, name in enumerate(row):
                weight = self._read(f"{name}.weight", (n, k)).to(self.device)
                if isinstance(weight, torch.Tensor):
                    out[i, j].copy_(weight)
                else:
                    out[i, j].copy_(self._widened(weight, why))
        return out.flatten(1, 2)


class _Pile:
    """Experts of one format, put one after the other into tensors that hold them all."""

    def __init__(self, experts: int, device: str | torch.device) -> None:
        self.experts, self.device = experts, device
        self._scales: list[torch.Tensor | None] = []  # of the activations of each
        self._differ = False
        self._first: QuantizedTensor | None = None
        self._whole: QuantizedTensor | None = None

    def put(self, parts: Sequence[QuantizedTensor]) -> str | None:
        """The next expert, its weights one below the other; or why it can't be put there."""
        scales = [part.input_scale for part in parts]
        known = [scale for scale in scales if scale is not None]
        same = len(known) == len(scales) and all(torch.equal(s, known[0]) for s in known)
        self._scales.append(known[0] if same else None)
        self._differ |= not same and bool(known)
        bare = [part.scaled(None) for part in parts]
        why = unjoinable(bare)
        if why is None and self._first is not None:
            why = unstackable([self._first, bare[0]])
        if why is not None:
            return why
        one = join(bare)
        if self._whole is None:
            self._first, self._whole = bare[0], one.changed(self._room)
        held = self._whole.tensors()
        for name, t in one.tensors().items():
            if name != "order":
                held[name][len(self._scales) - 1].copy_(t)
        return None

    def _room(self, name: str, t: torch.Tensor) -> torch.Tensor:
        if name == "order":
            return t.to(self.device)
        return torch.empty((self.experts, *t.shape), dtype=t.dtype, device=self.device)

    def whole(self) -> QuantizedTensor:
        """All of them; with static scales of activations where every expert has one."""
        assert self._whole is not None and len(self._scales) == self.experts
        scales = [scale for scale in self._scales if scale is not None]
        if len(scales) < self.experts:
            return self._whole
        return self._whole.scaled(torch.stack(scales).to(self.device))

    @property
    def lost_scales(self) -> bool:
        """Whether some of the experts have static scales that `whole` leaves out."""
        return self._differ or 0 < sum(s is not None for s in self._scales) < self.experts


def arithmetic_of(weight: QuantizedTensor, device: Device) -> str:
    """In which arithmetic `linear` multiplies few rows of x with the weight, and many; and why."""
    few, many = decide(1, weight, device), decide(MANY, weight, device)
    if few.arithmetic == many.arithmetic:
        return f"{few.arithmetic} ({few.why})"
    rows = memory_bound_rows(weight, device)
    return f"{few.arithmetic} up to {rows} rows of x, {many.arithmetic} above"


def experts_arithmetic_of(stack: QuantizedTensor, device: Device) -> str:
    """In which arithmetic `experts` multiplies few rows of x an expert, and many; and why."""
    one = stack.select(0)
    bits = 8 if isinstance(stack, Fp8Block | Fp8Rows) else 4
    made_for = getattr(stack, "activations", "none")
    return in_words(bits, made_for, device.target, lambda: memory_bound_rows(one, device))


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
