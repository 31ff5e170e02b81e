"""The prefix tree: the computed prompts, and the pages that hold them. No tensors.

It is a radix tree whose edges are runs of tokens. For causal models a run is one page, and any
prefix may be shared. For prefix-LMs a run is a whole prompt, because its keys and values are valid
for this prompt alone.

The tree is a holder of its pages, like a sequence. Pages without another holder may be evicted,
least recently used first, and leaves before their parents. Tenants share nothing: each salt has its
own root.
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
        """Return the number of pages that the tree holds, alone or with sequences."""
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
        """Note that `pages` hold `tokens`, as far as these fill whole runs.

        Runs that the tree knows already keep their pages.
        """
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
        """Free `count` pages or more that only the tree holds, oldest first.

        Return how many were freed. They are fewer than `count` if there are no more such pages.
        """
        num_freed = 0
        for node in list(self._by_age):
            if num_freed >= count:
                break
            if self._may_evict(node):
                num_freed += len(node.pages)
                self._remove(node)
        return num_freed

    def _may_evict(self, node: _Node) -> bool:
        """Return whether a node is a leaf whose pages only the tree holds."""
        if node.children:
            return False
        return all(self._pages.num_holders(page) == 1 for page in node.pages)

    def _walk(self, salt: str, tokens: Sequence[int]) -> Iterator[_Node]:
        """Yield the nodes of the longest known beginning of `tokens`, without the root."""
        node = self._roots.get(salt)
        if node is None:
            return
        for run in self._runs(tokens):
            node = node.children.get(run)
            if node is None:
                return
            yield node

    def _runs(self, tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Yield the runs of `tokens`. Tokens at the end that do not fill a run are left out."""
        size = self._pages.page_size
        if self._whole:
            size = max(1, len(tokens))
        for start in range(0, len(tokens) - size + 1, size):
            yield tuple(tokens[start : start + size])

    def _touch(self, path: Sequence[_Node]) -> None:
        # From the leaf up, so that a parent is more recent than its child, and is evicted later.
        for node in reversed(path):
            self._by_age[node] = None
            self._by_age.move_to_end(node)

    def _remove(self, node: _Node) -> None:
        del self._by_age[node]
        assert node.parent is not None
        del node.parent.children[node.run]
        self._pages.release(node.pages)
