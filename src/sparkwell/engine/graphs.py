"""Decode steps recorded once, as CUDA graphs, and replayed: a step then costs the host one launch.

A graph has fixed shapes, so steps are padded: to the next number of requests, and to the next bound
on the contexts' lengths, which sizes grids and the block table.  A padding row has no keys and no
cache slot: it reads nothing and writes nothing.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from sparkwell.engine.scheduler import Work
from sparkwell.models.batch import Batch
from sparkwell.models.load import Model
from sparkwell.ops.sampling import greedy

log = logging.getLogger(__name__)

FIRST_CONTEXT = 2048  # tokens; the bounds of context lengths grow from here
TELL_EVERY = 5.0  # seconds
GROWTH = 8  # from one bound to the next: grids of idle blocks are cheap, graphs are not
Key = tuple[int, int]  # requests, most tokens of a context


class Recorder(Protocol):
    """What records a step on a device."""

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Do `step` once or more; what is returned does it again, on the same tensors."""
        ...


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory: they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Once as usual, which compiles kernels and loads them, then into a graph."""
        with torch.cuda.device(self.device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                step()
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Other threads of the process may use the GPU meanwhile.
            with torch.cuda.graph(
                graph, self._pool, self._stream, capture_error_mode="thread_local"
            ):
                step()
        return graph.replay


def batch_sizes(max_requests: int) -> list[int]:
    """Numbers of requests that steps are padded to: powers of two, and the most there can be."""
    sizes = [1 << i for i in range((max_requests - 1).bit_length())]
    return [*sizes, max_requests]


def context_bounds(max_context: int, dense: int | None = None) -> list[int]:
    """Context lengths that steps are padded to.

    dense: context length up to which the model attends to every key, a bound of its own.
    """
    bounds, bound = [], FIRST_CONTEXT if dense is None else dense
    while 2 * bound < max_context:
        bounds.append(bound)
        bound *= GROWTH
    if dense is not None and not bounds and dense < max_context:
        bounds.append(dense)
    return [*bounds, max_context]


@dataclass
class Inputs:
    """What changes from step to step, side by side: one buffer on the host, copied in one go."""

    rows: int
    width: int
    batch: Batch
    host: torch.Tensor
    there: torch.Tensor
    _pages: list[list[int]] = field(init=False)
    _sent: torch.cuda.Event | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._pages = [[] for _ in range(self.rows)]
        _views(self.host, self.rows, self.width)[-1].fill_(-1)
        if self.there.is_cuda:
            self._sent = torch.cuda.Event()

    @classmethod
    def allocate(cls, key: Key, page_size: int, device: torch.device) -> "Inputs":
        """Buffers for a step of these sizes, holding padding."""
        rows, context = key
        width = -(-context // page_size)
        nbytes = sum(_parts(rows, width))
        host = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        there = torch.zeros(nbytes, dtype=torch.uint8, device=device)
        token_ids, positions, slots, lens, table = _views(there, rows, width)
        batch = Batch(
            token_ids=token_ids,
            positions=positions,
            slots=slots,
            query_start=torch.arange(rows + 1, dtype=torch.int32, device=device),
            context_lens=lens,
            block_table=table,
            logit_rows=torch.arange(rows, device=device),
            query_lens=(1,) * rows,
            key_lens=(context,) * rows,
            page_size=page_size,
        )
        inputs = cls(rows, width, batch, host, there)
        inputs.fill([])
        return inputs

    def fill(self, work: Sequence[Work]) -> None:
        """Write these decodes, then padding, and send it to the device."""
        size, none = self.batch.page_size, self.rows - len(work)
        ids = [w.request.all_ids[w.start] for w in work]
        slots = [w.request.pages[w.start // size] * size + w.start % size for w in work]
        starts = [w.start for w in work]
        if self._sent is not None:
            self._sent.synchronize()  # the buffer may still be read for a step that failed
        token_ids, positions, slot, lens, table = _views(self.host, self.rows, self.width)
        token_ids.copy_(torch.tensor(ids + [0] * none))
        positions.copy_(torch.tensor(starts + [0] * none))
        slot.copy_(torch.tensor(slots + [-1] * none))
        lens.copy_(torch.tensor([start + 1 for start in starts] + [0] * none))
        for row, w in enumerate(work):
            pages = w.request.pages[: w.start // size + 1]
            if self._pages[row] != pages:  # most steps change no page
                table[row, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
                self._pages[row] = pages
        self.there.copy_(self.host, non_blocking=True)
        if self._sent is not None:
            self._sent.record()


def _parts(rows: int, width: int) -> list[int]:
    """Bytes of each part of a buffer; every one starts on 16, as kernels read pointers best."""
    sizes = (8 * rows, 8 * rows, 8 * rows, 4 * rows, 4 * rows * width)
    return [-(-size // 16) * 16 for size in sizes]


def _views(buffer: torch.Tensor, rows: int, width: int) -> tuple[torch.Tensor, ...]:
    """token ids, positions, slots [rows] int64; lengths [rows], block table [rows, width] int32."""
    *columns, table = buffer.split(_parts(rows, width))
    kinds = (torch.int64, torch.int64, torch.int64, torch.int32)
    views = [part.view(kind)[:rows] for part, kind in zip(columns, kinds, strict=True)]
    return (*views, table.view(torch.int32)[: rows * width].view(rows, width))


@dataclass(frozen=True)
class Recorded:
    """One padded step: fill its inputs, replay, read the first rows of its results."""

    inputs: Inputs
    replay: Callable[[], None]


class DecodeGraphs:
    """The decode steps of one model, recorded for each padded size.

    max_requests: of one step; max_context: most tokens of a request.
    say: called with a line now and then while steps are recorded; the log's level is info.
    """

    def __init__(
        self,
        model: Model,
        caches: Sequence[object],
        *,
        page_size: int,
        max_requests: int,
        max_context: int,
        device: torch.device,
        recorder: Recorder,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.model, self.caches, self.page_size = model, caches, page_size
        self.device, self.recorder, self._say = device, recorder, say
        self.sizes = batch_sizes(max_requests)
        self.contexts = context_bounds(max_context, model.dense_context)
        vocab = model.lm_head.shape[0]
        # Graphs reuse each other's memory, so what a step leaves is kept outside of it.
        self._logits = torch.zeros(max_requests, vocab, device=device)
        self._greedy = torch.zeros(max_requests, dtype=torch.int64, device=device)
        self._recorded: dict[Key, Recorded] = {}

    @torch.inference_mode()
    def record(self) -> None:
        """Record every size, largest first; logs what it takes, and why where it is not possible.

        Not while requests are running: it computes on padding, but it takes seconds, and minutes
        where kernels have not been compiled before.
        """
        keys = [(n, context) for context in self.contexts for n in self.sizes][::-1]
        started, free = time.monotonic(), self._free()
        told = started
        self._tell(f"recording {len(keys)} decode steps as CUDA graphs")
        for done, key in enumerate(keys):
            if time.monotonic() - told > TELL_EVERY:
                told = time.monotonic()
                self._tell(f"recorded {done} of {len(keys)}; kernels are compiled the first time")
            try:
                self._recorded[key] = self._record(key)
            except torch.cuda.OutOfMemoryError:
                log.warning("no memory to record decodes of %d requests to %d tokens", *key)
            except Exception as error:  # whatever it is, steps still run as they come
                kind = type(error).__name__
                log.warning("no CUDA graphs of decodes: %s: %s", kind, error, exc_info=True)
                break
        seconds, mib = time.monotonic() - started, (free - self._free()) / 2**20
        self._tell(
            f"recorded {len(self._recorded)} decode steps in {seconds:.1f} s, {mib:.0f} MiB of "
            "GPU memory"
        )

    def _tell(self, line: str) -> None:
        log.info(line)
        if self._say is not None:
            self._say(line)

    def run(self, work: Sequence[Work]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Logits [n, vocab] and greedy ids [n] of a step that only decodes, by a recorded one.

        None where no recorded step serves it.  The tensors hold until the next step.
        """
        if not work or any(w.count != 1 or not w.samples for w in work):
            return None
        recorded = self._serving(len(work), max(w.start for w in work) + 1)
        if recorded is None:
            return None
        recorded.inputs.fill(work)
        recorded.replay()
        return self._logits[: len(work)], self._greedy[: len(work)]

    def _serving(self, requests: int, context: int) -> Recorded | None:
        """The smallest recorded step with room for these."""
        for n in self.sizes[bisect_left(self.sizes, requests) :]:
            for bound in self.contexts[bisect_left(self.contexts, context) :]:
                if (n, bound) in self._recorded:
                    return self._recorded[n, bound]
        return None

    def _record(self, key: Key) -> Recorded:
        inputs = Inputs.allocate(key, self.page_size, self.device)

        def step() -> None:
            logits = self.model.forward(inputs.batch, self.caches)  # type: ignore[arg-type]
            self._logits[: key[0]].copy_(logits)
            self._greedy[: key[0]].copy_(greedy(logits))

        return Recorded(inputs, self.recorder.record(step))

    def _free(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0
