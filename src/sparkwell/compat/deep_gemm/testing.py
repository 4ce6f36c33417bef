"""What DeepGEMM's tests import from `deep_gemm.testing`: comparisons, counts and timing."""

from collections.abc import Callable
from typing import Any

import torch

from sparkwell.errors import BadInput
from sparkwell.testing import cosine_gap

FLUSH_BYTES = 256 << 20  # written before a timed call, so that it finds nothing in the L2 cache


def get_arch_major() -> int:
    """9 on every GPU: their tests then ask for FP8 operands, which every target here serves.

    10 would ask for FP4 operands as well; another number for nothing at all.
    """
    return 9


def calc_diff(x: torch.Tensor, y: torch.Tensor) -> float:
    """1 - 2 <x, y> / (<x, x> + <y, y>) in fp64; 0 where both are zero."""
    return cosine_gap(x, y)


def count_bytes(*tensors: Any) -> int:
    """Bytes of all tensors, in lists and tuples too; None counts nothing."""
    total = 0
    for item in tensors:
        if isinstance(item, torch.Tensor):
            total += item.numel() * item.element_size()
        elif item is not None:
            total += count_bytes(*item)
    return total


def assert_bitwise_equal(x: torch.Tensor, y: torch.Tensor, label: str = "") -> None:
    """AssertionError, naming the first difference, unless shapes, types and all bits agree."""
    assert (x.shape, x.dtype) == (y.shape, y.dtype), f"{label}: {x.shape} {x.dtype} and {y.dtype}"
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    differ = x.contiguous().view(words) != y.contiguous().view(words)
    if bool(differ.any()):
        at = tuple(differ.nonzero()[0].tolist())
        raise AssertionError(
            f"{label}: {int(differ.sum())} of {differ.numel()} elements differ in their bits, "
            f"first at {at}: {x[at].item()} and {y[at].item()}"
        )


def bench(
    fn: Callable[[], Any],
    num_warmups: int = 5,
    num_tests: int = 10,
    high_precision: bool = False,
) -> float:
    """Seconds a call, the mean over `num_tests` calls in a row.

    high_precision: keep the GPU busy while the first calls are queued.
    """
    for _ in range(num_warmups):
        fn()
    if high_precision:
        x = torch.zeros((8192, 8192), device="cuda")
        x @ x
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(num_tests):
        fn()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / num_tests


def bench_kineto(
    fn: Callable[[], Any],
    kernel_names: str | tuple[str, ...],
    num_tests: int = 30,
    suppress_kineto_output: bool = False,
    trace_path: str | None = None,
    flush_l2: bool = True,
    with_multiple_kernels: bool = False,
    barrier: Callable[[], None] | None = None,
) -> float | tuple[float, ...]:
    """Seconds a call, the mean over `num_tests` calls: of the whole call, whatever runs in it.

    The kernels here bear other names than theirs.  So the first of several `kernel_names` gets the
    time of the call, which includes what they time under the other names; those get 0.
    trace_path, barrier: refused; the other options change nothing.
    """
    if trace_path is not None or barrier is not None:
        raise BadInput("bench_kineto: trace_path and barrier are not served, want None")
    fn()
    spans = []
    for _ in range(num_tests):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if flush_l2:
            torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda").zero_()
        start.record()
        fn()
        end.record()
        spans.append((start, end))
    torch.cuda.synchronize()
    seconds = sum(start.elapsed_time(end) for start, end in spans) / 1e3 / num_tests
    if isinstance(kernel_names, str):
        return seconds
    return (seconds, *(0.0 for _ in kernel_names[1:]))


def test_filter(condition: Callable[[], bool]) -> Callable[[Callable[..., Any]], Callable]:
    """A decorator: the function runs where `condition()` holds, else says that it did not."""

    def decorate(function: Callable[..., Any]) -> Callable[..., None]:
        def run(*args: Any, **kwargs: Any) -> None:
            if condition():
                function(*args, **kwargs)
            else:
                print(f"{function.__name__}: left out, {condition} does not hold")

        return run

    return decorate


def ignore_env(
    name: str, condition: Callable[[], bool]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that changes nothing: no environment variable of theirs has a meaning here."""
    return lambda function: function
