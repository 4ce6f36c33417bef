"""Decode steps recorded once, as CUDA graphs, and replayed: a step then costs the host one launch.

A graph has fixed shapes, so steps are padded: to the next number of requests, and to the next bound
on the contexts' lengths, which sizes grids and the block table.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from sparkwell.engine.inputs import Inputs, Mirror
from sparkwell.engine.scheduler import Work
from sparkwell.models.load import Model
from sparkwell.ops.sampling import COLUMNS, SamplingRow, draw, drawing_table, greedy

log = logging.getLogger(__name__)

FIRST_CONTEXT = 2048  # tokens; the bounds of context lengths grow from here
TELL_EVERY = 5.0  # seconds
GROWTH = 8  # from one bound to the next: grids of idle blocks are cheap, graphs are not
Key = tuple[int, int]  # requests, most tokens of a context
Replay = Callable[[], None]


class Recorder(Protocol):
    """What records a step on a device."""

    def record(self, step: Callable[[], None]) -> Replay:
        """Do `step` once or more; what is returned does it again, on the same tensors."""
        ...


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory: they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, step: Callable[[], None]) -> Replay:
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


class DecodeGraphs:
    """The decode steps of one model, and the draws after them, recorded for each padded size.

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
        # Graphs reuse each other's memory, so what a step leaves is kept outside of it.
        self._logits = torch.zeros(max_requests, model.lm_head.shape[0], device=device)
        self._ids = torch.zeros(max_requests, dtype=torch.int64, device=device)
        self._table = Mirror(max_requests * COLUMNS * 8, device)
        self._steps: dict[Key, tuple[Inputs, Replay]] = {}
        self._draws: dict[tuple[int, bool], Replay] = {}

    @torch.inference_mode()
    def record(self) -> None:
        """Record every size, largest first; logs what it takes, and why where it is not possible.

        Not while requests are running: it computes on padding, but it takes seconds, and minutes
        where kernels have not been compiled before.
        """
        keys = [(n, context) for context in self.contexts for n in self.sizes][::-1]
        started, used = time.monotonic(), self._used()
        told = started
        self._tell(f"recording {len(keys)} decode steps as CUDA graphs")
        for done, key in enumerate(keys):
            if time.monotonic() - told > TELL_EVERY:
                told = time.monotonic()
                self._tell(f"recorded {done} of {len(keys)}; kernels are compiled the first time")
            if not self._attempt(f"{key[0]} decodes to {key[1]} tokens", self._record_step, key):
                break
        for n in self.sizes[::-1] if self._steps else []:
            for sorts in (False, True):
                self._attempt(f"draws of {n} tokens", self._record_draw, (n, sorts))
        seconds, mib = time.monotonic() - started, (self._used() - used) / 2**20
        self._tell(
            f"recorded {len(self._steps)} decode steps in {seconds:.1f} s, {mib:.0f} MiB of GPU "
            "memory"
        )

    def run(self, work: Sequence[Work]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Logits [n, vocab] and greedy ids [n] of a step that only decodes, by a recorded one.

        None where no recorded step serves it.  The tensors hold until the next step, the ids until
        the next `draw`.
        """
        if not work or any(w.count != 1 or not w.samples for w in work):
            return None
        found = self._serving(len(work), max(w.start for w in work) + 1)
        if found is None:
            return None
        inputs, replay = found
        inputs.fill(work)
        replay()
        return self._logits[: len(work)], self._ids[: len(work)]

    def draw(self, rows: Sequence[SamplingRow], uniforms: Sequence[float]) -> torch.Tensor | None:
        """`sample` of the last step's logits [n]; None where that was not recorded."""
        if any(row.adjusts for row in rows):
            return None
        table, sorts = drawing_table(rows, uniforms, self._logits.shape[1])
        for n in self.sizes[bisect_left(self.sizes, len(rows)) :]:
            replay = self._draws.get((n, sorts))
            if replay is not None:
                self._table.free()
                _table(self._table.host)[: len(rows)] = table
                self._table.send()
                replay()
                return self._ids[: len(rows)]
        return None

    def _serving(self, requests: int, context: int) -> tuple[Inputs, Replay] | None:
        """The smallest recorded step with room for these."""
        for n in self.sizes[bisect_left(self.sizes, requests) :]:
            for bound in self.contexts[bisect_left(self.contexts, context) :]:
                if (n, bound) in self._steps:
                    return self._steps[n, bound]
        return None

    def _attempt(self, what: str, record: Callable[..., None], key: tuple[int, int]) -> bool:
        """False where it is no use to go on; steps then run as they come."""
        try:
            record(*key)
        except torch.cuda.OutOfMemoryError:
            log.warning("no CUDA graph of %s: no memory left", what)
        except Exception as error:  # whatever it is: nothing depends on it
            kind = type(error).__name__
            log.warning("no CUDA graph of %s: %s: %s", what, kind, error, exc_info=True)
            return False
        return True

    def _record_step(self, n: int, context: int) -> None:
        inputs = Inputs.allocate(n, context, self.page_size, self.device)

        def step() -> None:
            logits = self.model.forward(inputs.batch, self.caches)  # type: ignore[arg-type]
            self._logits[:n].copy_(logits)
            self._ids[:n].copy_(greedy(logits))

        self._steps[n, context] = inputs, self.recorder.record(step)

    def _record_draw(self, n: int, sorts: bool) -> None:
        logits, table, ids = self._logits[:n], _table(self._table.device)[:n], self._ids[:n]

        def step() -> None:
            ids.copy_(draw(logits, table, sorts=sorts))

        self._draws[n, sorts] = self.recorder.record(step)

    def _tell(self, line: str) -> None:
        log.info(line)
        if self._say is not None:
            self._say(line)

    def _used(self) -> int:
        return torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0


def _table(buffer: torch.Tensor) -> torch.Tensor:
    return buffer.view(torch.float64).view(-1, COLUMNS)
