"""topk_select against a sort in Python; logical_to_physical against its formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paged import GARBAGE, ints
from sparkwell.errors import BadInput, Unsupported
from sparkwell.ops.indexer import logical_to_physical, topk_select
from sparkwell.testing import in_poison

NAN, INF = math.nan, math.inf


def sorted_topk(row: list[float], visible: int, topk: int) -> list[int]:
    usable = [j for j, x in enumerate(row[: max(0, visible)]) if x == x and x != -INF]
    best = sorted(usable, key=lambda j: (-row[j], j))[:topk]
    return [*sorted(best), *[-1] * (topk - len(best))]


def assert_selects(scores: torch.Tensor, visible: torch.Tensor, topk: int) -> None:
    got = topk_select(in_poison(scores), in_poison(visible), topk=topk)
    rows = zip(scores.float().tolist(), visible.tolist(), strict=True)
    assert got.dtype == torch.int32 and got.shape == (len(scores), topk)
    assert got.tolist() == [sorted_topk(row, n, topk) for row, n in rows]


@pytest.mark.parametrize("topk", [1, 3, 64, 65, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_scores(topk, dtype):
    torch.manual_seed(0)
    visible = ints(65, 64, 0, 1, 40, 66, GARBAGE, -1, -GARBAGE, 3)
    assert_selects(torch.randn(10, 65).to(dtype), visible, topk)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(0, 9).flatmap(
        lambda n: st.lists(
            st.lists(
                st.sampled_from([0.0, -0.0, 1.0, 1.0, -1.0, 1 + 2**-23, 2.0, INF, -INF, NAN]),
                min_size=n,
                max_size=n,
            ),
            max_size=4,
        )
    ),
    visible=st.lists(st.integers(-1, 11), min_size=4, max_size=4),
    topk=st.integers(1, 12),
)
def test_ties_nan_and_infinities(rows, visible, topk):
    width = len(rows[0]) if rows else 0
    scores = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), width)
    assert_selects(scores, ints(*visible[: len(rows)]), topk)


def test_the_lower_column_wins_a_tie():
    scores = torch.tensor([[0.0, 5.0, 0.0, -0.0, 0.0, 5.0], [1.0] * 6])
    assert topk_select(scores, ints(6, 6), topk=4).tolist() == [[0, 1, 2, 5], [0, 1, 2, 3]]


def test_nan_and_minus_infinity_are_never_chosen():
    scores = torch.tensor([[NAN, -INF, -1e30, NAN], [NAN] * 4, [-INF] * 4])
    want = [[2, -1, -1], [-1] * 3, [-1] * 3]
    assert topk_select(scores, ints(4, 4, 4), topk=3).tolist() == want


def test_empty():
    assert topk_select(torch.zeros(0, 7), ints(), topk=3).shape == (0, 3)
    assert topk_select(torch.zeros(2, 0), ints(0, 4), topk=3).tolist() == [[-1] * 3] * 2
    assert topk_select(torch.zeros(0, 0), ints(), topk=3).shape == (0, 3)


def test_topk_errors():
    scores, visible = torch.randn(3, 5), ints(1, 2, 3)
    for bad_scores, bad_visible, topk, text in [
        (scores[0], visible, 2, r"scores is float32 \[5\], want float \[T, S\]"),
        (scores.int(), visible, 2, r"scores is int32 \[3, 5\], want float"),
        (scores, visible[:2], 2, r"visible is int32 \[2\], want \[3\]"),
        (scores, visible.float(), 2, r"visible is float32 \[3\], want int32"),
        (scores, visible, 0, r"topk is 0, want at least 1"),
    ]:
        with pytest.raises(BadInput, match=text):
            topk_select(bad_scores, bad_visible, topk=topk)
    with pytest.raises(Unsupported, match="topk_select: nothing serves this call"):
        topk_select(scores.to("meta"), visible, topk=2)


@pytest.mark.parametrize("page_size", [1, 3, 64])
@pytest.mark.parametrize("request_dtype", [torch.int32, torch.int64])
def test_slots_follow_the_block_table(page_size, request_dtype):
    torch.manual_seed(0)
    table = torch.randperm(4 * 5).view(4, 5).int()
    table[1, 3:] = -1
    table[2, 4] = GARBAGE  # times a page size of 3 or 64, it is past int32
    indices = torch.randint(0, 6 * page_size, (7, 9), dtype=torch.int32)
    indices[0, 0], indices[0, 1] = 5 * page_size - 1, 5 * page_size  # the last, and one past it
    indices[1, ::2] = -1
    indices[2, :3] = ints(-(2**31), GARBAGE, 2**31 - 1)
    indices[2, 3:5] = ints(4 * page_size, 5 * page_size - 1)  # on the garbage page
    request = torch.tensor([0, 3, 2, 1, -1, 4, 1]).to(request_dtype)
    got = logical_to_physical(
        in_poison(indices), in_poison(request), in_poison(table), page_size=page_size
    )

    def slot(i: int, p: int) -> int:
        if not 0 <= i < 4 or not 0 <= p < 5 * page_size or table[i, p // page_size] < 0:
            return -1
        found = int(table[i, p // page_size]) * page_size + p % page_size
        return found if found < 2**31 else -1

    want = [
        [slot(i, p) for p in row] for i, row in zip(request.tolist(), indices.tolist(), strict=True)
    ]
    assert got.dtype == torch.int32 and got.tolist() == want
    assert sum(s >= 0 for row in want for s in row) > 20


def test_slots_of_nothing():
    none = torch.zeros(0, 0, dtype=torch.int32)
    assert logical_to_physical(none, ints(), none, page_size=4).shape == (0, 0)
    got = logical_to_physical(torch.zeros(2, 3, dtype=torch.int64), ints(0, 1), none, page_size=4)
    assert got.tolist() == [[-1] * 3] * 2 and got.dtype == torch.int32


def test_slot_errors():
    indices, request, table = torch.zeros(2, 3).int(), ints(0, 0), ints(0)[None]
    for args, page_size, text in [
        ((indices.float(), request, table), 4, r"indices is float32 \[2, 3\], want int32"),
        ((indices[0], request, table), 4, r"indices is int32 \[3\], .*2 dimensions"),
        ((indices, request[:1], table), 4, r"request_of_token is int32 \[1\], want \[2\], one"),
        ((indices, request[None], table), 4, r"request_of_token is int32 \[1, 2\]"),
        ((indices, request, table[0]), 4, r"block_table is int32 \[1\], .*2 dimensions"),
        ((indices, request, table), 0, r"page_size is 0, want at least 1"),
    ]:
        with pytest.raises(BadInput, match=text):
            logical_to_physical(*args, page_size=page_size)
    with pytest.raises(Unsupported, match="logical_to_physical: nothing serves this call"):
        logical_to_physical(indices.to("meta"), request, table, page_size=4)
