"""Every small case captured in a CUDA graph: no wait, no host value, the same bits on replay."""

from typing import Any

import pytest
import torch

from sparkwell.errors import Unsupported
from sparkwell.formats.quantized import Quantized
from sparkwell.ops.launch import interpreting
from sparkwell.verify.case import Case, Maker
from sparkwell.verify.cases import all_cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or interpreting(), reason="needs a GPU"),
]
CASES = [case for case in all_cases() if case.size == "small"]


def tensors(out: Any) -> list[torch.Tensor]:
    if isinstance(out, tuple):
        return [tensor for part in out for tensor in tensors(part)]
    if isinstance(out, Quantized):
        return list(out.tensors().values())
    return [out] if isinstance(out, torch.Tensor) else []


def same_bits(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Where they are equal, as integers: NaN equals NaN."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    # A column of scales is contiguous to torch, whatever its stride: new memory instead.
    return x.clone(memory_format=torch.contiguous_format).view(kind) == y.clone(
        memory_format=torch.contiguous_format
    ).view(kind)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.op}-{c.name}")
def test_a_captured_call_gives_the_same_bits(case: Case) -> None:
    inputs = case.make(Maker(torch.device("cuda")))
    try:
        eager = [x.clone() for x in tensors(case.call(inputs, "kernel"))]
    except Unsupported as error:
        pytest.skip(str(error))
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        case.call(inputs, "kernel")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tensors(case.call(inputs, "kernel"))
    assert eager
    for poison in (99, 77):
        for x in captured:
            if not case.mutates:
                (x.view(torch.uint8) if x.dtype.itemsize == 1 else x).fill_(poison)
        left = [x.clone() for x in captured]
        graph.replay()
        torch.cuda.synchronize()
        for before, after, unwritten in zip(eager, captured, left, strict=True):
            same = same_bits(before, after)
            if "groups" in inputs:  # rows of no group are nobody's result; the check knows them
                same |= same_bits(after, unwritten)
                case.compare(inputs, after, case.call(inputs, "reference"))
            assert same.all()
