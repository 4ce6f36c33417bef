"""cache_gather reads each context's own slots, in order, and nothing else."""

import pytest
import torch

from sparkwell.errors import BadInput
from sparkwell.formats.kv import PagedCache, latent_record
from sparkwell.ops.gather import cache_gather


def filled(dtype: str) -> tuple[PagedCache, torch.Tensor]:
    cache = PagedCache.allocate(latent_record(dtype), 6, 4)
    cache.pages.fill_(0xFF)  # NaN in every type
    table = torch.tensor([[5, 1, 2147480000], [3, 2147480000, -1], [0, 2, 4]], dtype=torch.int32)
    return cache, table


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8"])
def test_contexts_come_in_order(dtype: str) -> None:
    cache, table = filled(dtype)
    lens = torch.tensor([7, 0, 9], dtype=torch.int32)
    first = [20, 21, 22, 23, 4, 5, 6]
    third = [0, 1, 2, 3, 8, 9, 10, 11, 16]
    values = torch.randn(16, 576)
    cache.write(torch.tensor(first + third), values)
    got, starts = cache_gather(cache, lens, table)
    assert starts.tolist() == [0, 7, 7, 16] and starts.dtype == torch.int32
    record = cache.record
    assert torch.equal(got, record.unpack(record.pack(values)))


def test_no_requests() -> None:
    cache, table = filled("fp32")
    got, starts = cache_gather(cache, torch.zeros(0, dtype=torch.int32), table[:0])
    assert got.shape == (0, 576) and starts.tolist() == [0]


def test_a_narrow_table_is_refused() -> None:
    cache, table = filled("fp32")
    with pytest.raises(BadInput, match="13 keys, the block table 3 pages of 4; widen the table"):
        cache_gather(cache, torch.tensor([1, 13, 0], dtype=torch.int32), table)
