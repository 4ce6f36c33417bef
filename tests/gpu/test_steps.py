"""What a decode step asks of torch on a GPU: no wait, and the references' numbers."""

import pytest
import torch

from sparkwell.ops.linear import linear
from sparkwell.ops.sampling import (
    NOTHING,
    SamplingRow,
    draw,
    drawing_table,
    logprobs,
    sample,
    sample_reference,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
ROWS = [
    SamplingRow(),
    SamplingRow(temperature=0.0),
    SamplingRow(temperature=0.7, top_k=20, top_p=0.9, min_p=0.02),
    SamplingRow(repetition_penalty=1.3, logit_bias={3: 2.0, 9: -1.0}),
    SamplingRow(presence_penalty=0.5, frequency_penalty=0.2, suppressed=frozenset({1, 2})),
]


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_sampling_waits_for_nothing_and_draws_the_references_tokens() -> None:
    n, vocab = 40, 5000
    logits, rows = 3 * randn(n, vocab), ROWS * 8
    histories = [(tuple(range(i, i + 9)), [i, i, 7]) for i in range(n)]
    u = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    want = sample_reference(logits, rows, histories, u)
    there = logits.cuda()
    there[5, 17] = float("nan")
    sample(there, rows, histories, u)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ids = sample(there, rows, histories, u)
        chosen, top_ids, top = logprobs(there, ids, top=5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    want[5] = NOTHING
    assert ids.tolist() == want.tolist()
    assert top_ids.shape == top.shape == (n, 5) and chosen.shape == (n,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 8, 256), (3, 129, 72), (0, 5, 16), (64, 2048, 256)])
def test_half_precision_operands_and_an_fp32_result(
    dtype: torch.dtype, m: int, n: int, k: int
) -> None:
    x, weight = randn(m, k).to(dtype), randn(n, k).to(dtype)
    got = linear(x.cuda(), weight.cuda(), out_dtype=torch.float32)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.cpu(), x.float() @ weight.float().T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("vocab", [2048, 129280])
@pytest.mark.parametrize("sorts", [False, True])
def test_draws_can_be_recorded(vocab: int, sorts: bool) -> None:
    n = 64
    rows = [SamplingRow(temperature=0.9, top_p=0.9 if sorts else 1.0, min_p=0.01)] * n
    logits = (3 * randn(n, vocab)).cuda()
    table, needed = drawing_table(rows, [i / n for i in range(n)], vocab)
    there = table.cuda()
    want = draw(logits, there, sorts=needed)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = draw(logits, there, sorts=needed)
    graph.replay()
    assert needed == sorts and torch.equal(got, want)
    assert len(got.unique()) > n // 4
