"""Which backend serves a call, what a refusal says, and that every op asks the same way."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

import sparkwell.ops
from sparkwell.errors import BadInput, Unsupported
from sparkwell.formats.paged import PagedCache
from sparkwell.ops import OPS
from sparkwell.ops.activation import swiglu
from sparkwell.ops.backend import choose
from sparkwell.ops.linear import linear
from sparkwell.ops.moe import experts, grouped_linear, route_sigmoid, route_softmax
from sparkwell.ops.norm import add_rms_norm, layer_norm, rms_norm
from sparkwell.ops.rope import rope
from sparkwell.ops.sampling import SamplingRow, draw, greedy, logprobs, sample


def far(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor on a device that is not the CPU and that every machine has."""
    return torch.empty(shape, dtype=dtype, device="meta")


def route_options() -> dict[str, int | float | bool]:
    return {"topk": 2, "n_group": 2, "topk_group": 1, "normalize": True, "scale": 1.0}


CALLS: dict[str, Callable[..., object]] = {
    "rms_norm": lambda **b: rms_norm(far(2, 3), far(3), eps=1e-6, **b),
    "add_rms_norm": lambda **b: add_rms_norm(far(2, 3), far(2, 3), far(3), eps=1e-6, **b),
    "layer_norm": lambda **b: layer_norm(far(2, 3), far(3), far(3), eps=1e-6, **b),
    "swiglu": lambda **b: swiglu(far(2, 6), **b),
    "rope": lambda **b: rope(far(2, 4), far(2, dtype=torch.int64), far(2), interleaved=True, **b),
    "linear": lambda **b: linear(far(2, 3), far(4, 3), far(4), **b),
    "route_sigmoid": lambda **b: route_sigmoid(far(2, 8), far(8), **route_options(), **b),
    "route_softmax": lambda **b: route_softmax(far(2, 8), **route_options(), **b),
    "experts": lambda **b: experts(
        far(2, 4), far(2, 1, dtype=torch.int64), far(2, 1), far(3, 6, 4), far(3, 4, 3), **b
    ),
    "grouped_linear": lambda **b: grouped_linear(far(2, 4), far(1, 3, 4), None, **b),
    "greedy": lambda **b: greedy(far(1, 4), **b),
    "draw": lambda **b: draw(far(1, 4), far(1, 5, dtype=torch.float64), sorts=True, **b),
    "sample": lambda **b: sample(far(1, 4), [SamplingRow()], [((), ())], torch.tensor([0.5]), **b),
    "logprobs": lambda **b: logprobs(far(1, 4), torch.tensor([0]), top=1, **b),
}
HINTS = {
    "max_query_len",
    "max_context_len",
    "num_keys",
    "expected_rows",
}  # bounds a kernel's grid, changes no result
CAST = {"out_dtype", "out"}  # of a result that the reference leaves in fp32, and where it goes
WITHOUT_VALUES = [
    "rms_norm",
    "add_rms_norm",
    "layer_norm",
    "swiglu",
    "rope",
    "linear",
]  # run on meta tensors
WITHOUT_VALUES += ["route_sigmoid", "route_softmax"]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_cpu_is_served_by_the_reference(backend: str) -> None:
    assert choose("rms_norm", torch.ones(3), backend) == "reference"


def test_another_device_is_served_only_where_asked() -> None:
    choose("rms_norm", far(3), "reference")
    with pytest.raises(Unsupported) as raised:
        choose("rms_norm", far(2, 3, dtype=torch.bfloat16))
    assert str(raised.value).splitlines() == [
        "rms_norm: nothing serves this call",
        "  asked    (2, 3) bfloat16 on meta",
        "  refused  kernel: rms_norm has no kernel for device type 'meta'",
        "  refused  reference: runs on CPU tensors by itself, on others only where it is asked for",
        '  do       pass CPU tensors, or backend="reference" for the slow fp32 torch reference',
    ]


@pytest.mark.parametrize("tensor", [torch.ones(3), far(3)], ids=["cpu", "elsewhere"])
def test_an_unknown_backend_is_named(tensor: torch.Tensor) -> None:
    with pytest.raises(
        BadInput, match="swiglu: backend is 'cuda', want one of auto, kernel, reference"
    ):
        choose("swiglu", tensor, "cuda")


@pytest.mark.parametrize("op", CALLS)
def test_every_op_refuses_in_its_own_name(op: str) -> None:
    with pytest.raises(Unsupported, match=f"^{op}: nothing serves this call"):
        CALLS[op]()
    with pytest.raises(BadInput, match=f"^{op}: backend is 'fast'"):
        CALLS[op](backend="fast")


@pytest.mark.parametrize("op", WITHOUT_VALUES)
def test_the_reference_runs_on_any_device_where_asked(op: str) -> None:
    out = CALLS[op](backend="reference")
    first = out[0] if isinstance(out, tuple) else out
    assert isinstance(first, torch.Tensor)
    assert first.device.type == "meta"
    assert len(first) == 2


def modules() -> list[ModuleType]:
    found = pkgutil.iter_modules(sparkwell.ops.__path__, "sparkwell.ops.")
    return [importlib.import_module(module.name) for module in found]


@pytest.mark.parametrize("op", OPS)
def test_an_indexed_op_has_its_reference_and_takes_a_backend_last(op: str) -> None:
    module = importlib.import_module(OPS[op])
    public, reference = getattr(module, op), getattr(module, f"{op}_reference")
    *arguments, backend = inspect.signature(public).parameters.values()
    assert (backend.name, backend.default) == ("backend", "auto")
    assert backend.kind is inspect.Parameter.KEYWORD_ONLY
    wanted = [argument.name for argument in arguments if argument.name not in HINTS | CAST]
    given = [name for name in inspect.signature(reference).parameters if name not in HINTS]
    assert given == wanted
    for argument in arguments:
        if argument.annotation is not PagedCache:  # whose own docstring says what it is
            assert argument.name in (public.__doc__ or ""), f"{op}: {argument.name}?"


def test_the_index_has_every_op() -> None:
    found = {
        name
        for module in modules()
        for name in getattr(module, "__all__", ())  # imported when it is asked for
        for member in (getattr(module, name),)
        if inspect.isfunction(member) and "backend" in inspect.signature(member).parameters
    }
    assert found == set(OPS)
