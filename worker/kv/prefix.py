"""The prefix tree: which computed pages hold which tokens, so that nobody computes them twice. Ints
only, no tensors.

It is a radix tree whose edges are runs of tokens. For causal models a run is one page, and any
prefix may be shared. For prefix-LMs a run is a whole prompt, whose keys and values hold for this
prompt alone.

The tree holds its pages as a sequence does. Pages that nobody else holds may be evicted, least
recently used first, leaves before their parents. Tenants never share: each salt has a root of its
own.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from worker.kv.pages import PageTable


@dataclass(eq=False)
class _Node:
    """A run of tokens and the pages that hold them; the last one may be partly filled."""

    run: tuple[int, ...] = ()
    pages: list[int] = field(default_factory=list)
    parent: "_Node | None" = None
    children: dict[tuple[int, ...], "_Node"] = field(default_factory=dict)


class PrefixTree:
    """Prefix tree over `pages`; with `whole_prompts` only identical prompts are shared.

    Invariant: every node was used at least as recently as its children.
    """

    def __init__(self, pages: PageTable, *, whole_prompts: bool) -> None:
        self._pages = pages
        self._whole = whole_prompts
        self._roots: dict[str, _Node] = {}
        self._by_age: OrderedDict[_Node, None] = OrderedDict()

    @property
    def num_pages(self) -> int:
        """Number of pages that the tree holds, alone or with others."""
        return sum(len(node.pages) for node in self._by_age)

    def match(self, salt: str, tokens: Sequence[int]) -> tuple[list[int], int]:
        """Return the pages that hold the longest known beginning of `tokens`, and its length.

        The caller is not yet a holder of the pages.
        """
        path = list(self._walk(salt, tokens))
        self._touch(path)
        pages: list[int] = []
        length = 0
        for node in path:
            pages += node.pages
            length += len(node.run)
        return pages, length

    def insert(self, salt: str, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Remember that `pages` hold `tokens`, as far as they fill whole runs. Runs already known
        keep their pages."""
        path = list(self._walk(salt, tokens))
        parent = path[-1] if path else self._roots.setdefault(salt, _Node())

        start = sum(len(node.run) for node in path)
        for run in self._runs(tokens[start:]):
            end = start + len(run)
            first_page = start // self._pages.page_size
            end_page = self._pages.pages_for(end)
            node = _Node(run, list(pages[first_page:end_page]), parent)
            self._pages.share(node.pages)
            parent.children[run] = node
            path.append(node)
            parent = node
            start = end
        self._touch(path)

    def evict(self, count: int) -> int:
        """Free pages that only the tree holds, oldest first, until `count` or more are free; return
        how many were freed."""
        freed = 0
        for node in list(self._by_age):
            if freed >= count:
                break
            if not node.children and all(self._pages.num_holders(page) == 1 for page in node.pages):
                freed += len(node.pages)
                self._remove(node)
        return freed

    def _walk(self, salt: str, tokens: Sequence[int]) -> Iterator[_Node]:
        """Yield the nodes of the longest known beginning of `tokens`, from the root's child on."""
        node = self._roots.get(salt)
        if node is None:
            return
        for run in self._runs(tokens):
            node = node.children.get(run)
            if node is None:
                return
            yield node

    def _runs(self, tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Cut `tokens` into runs; what does not fill a run at the end is left out."""
        size = max(1, len(tokens)) if self._whole else self._pages.page_size
        for start in range(0, len(tokens) - size + 1, size):
            yield tuple(tokens[start : start + size])

    def _touch(self, path: Sequence[_Node]) -> None:
        # From the leaf up, so that a parent is more recent than its child and is evicted after it.
        for node in reversed(path):
            self._by_age[node] = None
            self._by_age.move_to_end(node)

    def _remove(self, node: _Node) -> None:
        del self._by_age[node]
        assert node.parent is not None
        del node.parent.children[node.run]
        self._pages.release(node.pages)
