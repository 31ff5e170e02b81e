"""The page table's arithmetic: which pages are free and which tokens live where. Ints only, no tensors."""

from collections.abc import Sequence


class PageTable:
    """`num_pages` pages of `page_size` tokens. Invariant: free + held == total, and no page is held twice."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def pages_for(self, num_tokens: int) -> int:
        """How many pages hold `num_tokens`."""
        return -(-num_tokens // self.page_size)

    def reserve(self, num_tokens: int) -> list[int] | None:
        """Pages for `num_tokens`, or None when there is no room now."""
        wanted = self.pages_for(num_tokens)
        if wanted > len(self._free):
            return None
        return [self._free.pop() for _ in range(wanted)]

    def release(self, pages: Sequence[int]) -> None:
        """Give pages back. Releasing a page that is free is our own bug."""
        assert not set(pages) & set(self._free), "page released twice"
        self._free.extend(pages)

    def slot(self, pages: Sequence[int], position: int) -> int:
        """The store's row for the token at `position` of the sequence that holds `pages`."""
        return pages[position // self.page_size] * self.page_size + position % self.page_size
