"""PagePool: sharing, eviction order, and keys that name a whole prefix."""

import pytest

from sparkwell.engine.pages import ROOT_KEY, PagePool, page_key
from sparkwell.errors import BadInput


def fill(pool: PagePool, keys: list[bytes]) -> list[int]:
    """A sequence that computed and published these pages."""
    pages = []
    for key in keys:
        page = pool.allocate()
        assert page is not None
        pool.publish(page, key)
        pages.append(page)
    return pages


def chain(*blocks: list[int]) -> list[bytes]:
    keys: list[bytes] = []
    for block in blocks:
        keys.append(page_key(keys[-1] if keys else ROOT_KEY, block))
    return keys


def counts(pool: PagePool) -> tuple[int, int, int]:
    return pool.num_used, pool.num_cached, pool.num_free


def test_a_key_names_the_whole_prefix() -> None:
    assert chain([1, 2], [3, 4])[1] != chain([9, 2], [3, 4])[1]
    assert chain([1, 2], [3, 4])[1] != chain([1, 2], [4, 3])[1]
    assert chain([1, 2])[0] != chain([1, 2 + 2**32])[0]  # 64-bit tokens
    assert chain([1, 2], [3, 4]) == chain([1, 2], [3, 4])
    assert len(set(chain([1], [1], [1]))) == 3
    assert len(page_key(ROOT_KEY, [1])) == 32  # a cryptographic width: equality is trusted


def test_pages_for_rounds_up() -> None:
    pool = PagePool(4, 3)
    assert [pool.pages_for(n) for n in (0, 1, 3, 4, 6, 7)] == [0, 1, 1, 2, 2, 3]


def test_allocation_until_nothing_is_left() -> None:
    pool = PagePool(3, 2)
    pages = [pool.allocate() for _ in range(3)]
    assert sorted(p for p in pages if p is not None) == [0, 1, 2]
    assert pool.allocate() is None and counts(pool) == (3, 0, 0)
    pool.release([1])
    assert pool.allocate() == 1


def test_private_pages_become_free_and_published_ones_cached() -> None:
    pool = PagePool(4, 2)
    first, second = fill(pool, chain([1, 2], [3, 4]))
    private = pool.allocate()
    assert private is not None
    pool.release([first, second, private])
    assert counts(pool) == (0, 2, 2) and pool.num_available == 4
    assert pool.is_published(first) and not pool.is_published(private)


def test_lookup_finds_the_longest_prefix_only() -> None:
    pool = PagePool(8, 2)
    keys = chain([1, 2], [3, 4], [5, 6])
    pages = fill(pool, keys)
    assert pool.lookup(keys) == pages
    assert pool.lookup(chain([1, 2], [3, 4], [7, 8])) == pages[:2]
    assert pool.lookup(chain([0, 0], [3, 4])) == []
    assert pool.lookup(keys[1:]) == pages[1:]
    assert pool.lookup([b"unknown", *keys]) == []  # a hole ends the prefix
    assert [pool.owners(page) for page in pages] == [1, 1, 1]


def test_a_shared_page_lives_until_its_last_owner() -> None:
    pool = PagePool(2, 2)
    (page,) = fill(pool, chain([1, 2]))
    pool.share(page)
    assert pool.owners(page) == 2
    pool.release([page])
    assert counts(pool) == (1, 0, 1) and pool.owners(page) == 1
    pool.release([page])
    assert counts(pool) == (0, 1, 1)
    pool.share(page)  # back from the cached ones
    assert counts(pool) == (1, 0, 1)
    assert pool.allocate() is not None and pool.allocate() is None


def test_the_least_recently_used_chain_goes_first_and_its_tail_before_its_head() -> None:
    pool = PagePool(4, 1)
    old, new = chain([1], [2]), chain([7], [8])
    old_pages, new_pages = fill(pool, old), fill(pool, new)
    pool.release(old_pages)
    pool.release(new_pages)
    assert pool.allocate() == old_pages[1]
    assert pool.lookup(old) == old_pages[:1] and pool.lookup(new) == new_pages
    pool.share(old_pages[0])
    pool.release([old_pages[0]])  # used again: now the youngest
    assert [pool.allocate() for _ in range(3)] == [new_pages[1], new_pages[0], old_pages[0]]
    assert pool.lookup(old) == [] and pool.lookup(new) == []


def test_free_pages_are_taken_before_cached_ones() -> None:
    pool = PagePool(3, 1)
    keys = chain([1])
    pool.release(fill(pool, keys))
    assert pool.allocate() is not None and pool.allocate() is not None
    assert len(pool.lookup(keys)) == 1
    assert pool.allocate() is not None
    assert pool.lookup(keys) == []


def test_an_evicted_page_is_private_again() -> None:
    pool = PagePool(1, 1)
    pool.release(fill(pool, chain([1])))
    page = pool.allocate()
    assert page == 0 and not pool.is_published(page)
    pool.publish(page, chain([2])[0])
    assert pool.lookup(chain([2])) == [page] and pool.lookup(chain([1])) == []


def test_known_content_published_twice_stays_with_the_first_page() -> None:
    pool = PagePool(4, 1)
    keys = chain([1])
    (first,) = fill(pool, keys)
    (second,) = fill(pool, keys)
    assert pool.lookup(keys) == [first] and not pool.is_published(second)
    pool.release([second])
    assert counts(pool) == (1, 0, 3)
    pool.release([first])
    assert pool.lookup(keys) == [first]


@pytest.mark.parametrize(("pages", "size"), [(0, 4), (4, 0), (-1, 1)])
def test_sizes_are_checked(pages: int, size: int) -> None:
    with pytest.raises(BadInput, match=f"num_pages is {pages} and page_size is {size}, want both"):
        PagePool(pages, size)


def test_misuse_of_pages_is_noticed() -> None:
    pool = PagePool(2, 1)
    page = pool.allocate()
    assert page is not None
    with pytest.raises(AssertionError):
        pool.share(page)  # private
    pool.publish(page, b"key")
    with pytest.raises(AssertionError):
        pool.publish(page, b"other")
    pool.release([page])
    with pytest.raises(AssertionError):
        pool.release([page])
