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
    for x in captured:
        if not case.mutates:
            (x.view(torch.uint8) if x.dtype.itemsize == 1 else x).fill_(99)
    graph.replay()
    torch.cuda.synchronize()
    assert eager
    for before, after in zip(eager, captured, strict=True):
        # As bytes: NaN equals NaN.  Some scales lie column by column.
        assert torch.equal(*(x.contiguous().view(torch.uint8) for x in (before, after)))
