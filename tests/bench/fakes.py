"""A clock that counts, and cases that run without a kernel."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sparkwell.bench.kernels import Bench
from sparkwell.bench.peers import Peers
from sparkwell.verify.case import Case

Call = Callable[[], Any]


class FakeClock:
    """Each call takes the seconds its `cost` says; `log` holds what ran, in order."""

    def __init__(self, captures: bool = True) -> None:
        self.captures = captures
        self.log: list[str] = []

    def capture(self, calls: Sequence[Call]) -> Call | None:
        for call in calls:
            call()

        def replay() -> None:
            for call in calls:
                call()

        replay.calls = calls  # type: ignore[attr-defined]
        return replay if self.captures else None

    def seconds(self, run: Call, times: int) -> float:
        run()
        calls = getattr(run, "calls", ())
        self.log.append(getattr(calls[0], "name", "?") if calls else "?")
        return times * sum(getattr(call, "cost", 1e-3) for call in calls or (run,))


class Costly:
    """A call that takes `cost` seconds on a FakeClock."""

    def __init__(self, name: str, cost: float) -> None:
        self.name, self.cost = name, cost

    def __call__(self) -> None: ...


def bench(peers: Peers, clock: FakeClock | None = None) -> Bench:
    """A CPU with a small L2."""
    rates = {"copy_gbs": 1000.0, "read_gbs": 1000.0, "bf16_tflops": 100.0, "fp8_tflops": 200.0}
    return Bench(torch.device("cpu"), clock or FakeClock(), peers, 1 << 20, rates, {"gpu": "none"})


def reference_as_kernel(self: Case, inputs: dict[str, Any], backend: str) -> Any:
    """Stands in for Case.call where no kernel can run."""
    import importlib

    from sparkwell.ops import OPS

    return getattr(importlib.import_module(OPS[self.op]), self.op)(**inputs, backend="reference")
