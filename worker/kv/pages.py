"""The page table: the free pages, and the number of holders of each other page. No tensors."""

from collections.abc import Iterable


class PageTable:
    """Table of `num_pages` pages of `page_size` tokens.

    Invariant: a page is either on the free list, or has at least one holder.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    def pages_for(self, num_tokens: int) -> int:
        """Return the number of pages that hold `num_tokens`."""
        return -(-num_tokens // self.page_size)

    def num_holders(self, page: int) -> int:
        """Return the number of sequences and tree nodes that hold a page."""
        return self._holders[page]

    def reserve(self, count: int) -> list[int] | None:
        """Take `count` free pages, which get one holder each. Return None if fewer are free."""
        if count > len(self._free):
            return None
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add a holder to each page. Sharing a free page is our own bug."""
        for page in pages:
            assert self._holders[page], "a free page cannot be shared"
            self._holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Take a holder from each page. A page without holders becomes free.

        Releasing a free page is our own bug.
        """
        for page in pages:
            assert self._holders[page], "page released twice"
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)
