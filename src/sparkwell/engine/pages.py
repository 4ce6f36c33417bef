"""Which cache pages are free, owned, or kept for reuse.  Every operation is O(1) per page."""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from sparkwell.errors import BadInput

ROOT_KEY = b""  # parent of a sequence's first page


def page_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """blake2b(parent || tokens): names the whole prefix that ends with this page.

    A page's cache entries depend on every token before them, so the key chains the parent's.  It is
    a cryptographic digest because equal keys are taken for equal prefixes: with a weak hash a
    crafted prompt could read another request's cache.

    parent: key of the page before, or ROOT_KEY; token_ids: [page_size] the page's tokens.
    """
    return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=32).digest()


class PagePool:
    """Reference counts over physical pages, and the full pages that a later prompt may share.

    A page is used (somebody owns it), cached (nobody does, but its content has a key) or free.
    Published pages are never written again; cached ones are evicted least recently used first.

    num_pages: >= 1; page_size: tokens in a page, >= 1.
    Raises: BadInput for sizes below 1.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 1 or page_size < 1:
            raise BadInput(
                f"PagePool: num_pages is {num_pages} and page_size is {page_size}, want both >= 1"
            )
        self.num_pages, self.page_size = num_pages, page_size
        self._owners = [0] * num_pages
        self._key_of: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._free = list(range(num_pages - 1, -1, -1))  # a stack; the lowest page comes first
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first

    @property
    def num_free(self) -> int:
        """Pages with no owner and no reusable content."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages with no owner whose content may be reused."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Pages somebody owns."""
        return self.num_pages - self.num_available

    @property
    def num_available(self) -> int:
        """Pages that `allocate` could hand out: free and cached ones."""
        return len(self._free) + len(self._cached)

    def pages_for(self, num_tokens: int) -> int:
        """ceil(num_tokens / page_size)."""
        return -(-num_tokens // self.page_size)

    def owners(self, page: int) -> int:
        """How many requests own the page."""
        return self._owners[page]

    def is_published(self, page: int) -> bool:
        """Whether later prompts may share the page, so that it must not be written any more."""
        return self._key_of[page] is not None

    def allocate(self) -> int | None:
        """A page for one owner, the least recently used cached one if none is free; or None."""
        if self._free:
            page = self._free.pop()
        elif self._cached:
            page, _ = self._cached.popitem(last=False)
            key = self._key_of[page]
            assert key is not None
            del self._page_of[key]
            self._key_of[page] = None
        else:
            return None
        assert self._owners[page] == 0
        self._owners[page] = 1
        return page

    def lookup(self, keys: Sequence[bytes]) -> list[int]:
        """Pages that hold the longest known prefix of `keys`; takes no ownership."""
        pages = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def share(self, page: int) -> None:
        """One more owner for a page that `lookup` found."""
        assert self.is_published(page)
        if self._owners[page] == 0:
            del self._cached[page]
        self._owners[page] += 1

    def publish(self, page: int, key: bytes) -> None:
        """Offer a full, computed page for reuse.  If the content is known already, nothing happens:
        the page stays private and becomes free with its owner."""
        assert self._owners[page] == 1 and not self.is_published(page)
        if key not in self._page_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """Give up one ownership of each page of one sequence.

        The last pages become evictable first: a chain without its head is of no use.
        """
        for page in reversed(pages):
            assert self._owners[page] > 0
            self._owners[page] -= 1
            if self._owners[page] == 0:
                if self.is_published(page):
                    self._cached[page] = None
                else:
                    self._free.append(page)
