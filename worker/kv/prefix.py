"""The prefix tree: which computed pages hold which tokens, so that nobody computes them twice. Ints
only, no tensors.

A radix tree whose edges are runs of tokens: one page for causal models, where any prefix may be
shared, or a whole prompt for prefix-LMs, where a prompt's keys and values hold for this prompt
alone. The tree holds its pages like any sequence does; pages that nobody else holds are its to
evict, least recently used first, leaves before their parents. Tenants never share: each salt has a
root of its own.
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
    """`whole_prompts`: share identical prompts only. Invariant: every node is at least as recent as
    its children."""

    def __init__(self, pages: PageTable, *, whole_prompts: bool) -> None:
        self._pages = pages
        self._whole = whole_prompts
        self._roots: dict[str, _Node] = {}
        self._by_age: OrderedDict[_Node, None] = OrderedDict()

    @property
    def num_pages(self) -> int:
        """Pages the tree holds, alone or with others."""
        return sum(len(node.pages) for node in self._by_age)

    def match(self, salt: str, tokens: Sequence[int]) -> tuple[list[int], int]:
        """Pages that hold the longest known beginning of `tokens`, and its length; they are not yet
        shared."""
        path = list(self._walk(salt, tokens))
        self._touch(path)
        return [page for node in path for page in node.pages], sum(len(node.run) for node in path)

    def insert(self, salt: str, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Remember that `pages` hold `tokens`, as far as they fill whole runs. Runs already known
        keep their pages."""
        path = list(self._walk(salt, tokens))
        done = sum(len(node.run) for node in path)
        parent = path[-1] if path else self._roots.setdefault(salt, _Node())
        for run in self._runs(tokens[done:]):
            first, done = done // self._pages.page_size, done + len(run)
            node = _Node(run, list(pages[first : self._pages.pages_for(done)]), parent)
            self._pages.share(node.pages)
            parent.children[run] = node
            path.append(node)
            parent = node
        self._touch(path)

    def evict(self, count: int) -> int:
        """Free up to `count` pages that only the tree holds, oldest first; answers how many came
        free."""
        freed = 0
        for node in list(self._by_age):
            if freed >= count:
                break
            if not node.children and all(self._pages.num_holders(page) == 1 for page in node.pages):
                freed += len(node.pages)
                self._remove(node)
        return freed

    def _walk(self, salt: str, tokens: Sequence[int]) -> Iterator[_Node]:
        node = self._roots.get(salt)
        for run in self._runs(tokens):
            node = node.children.get(run) if node is not None else None
            if node is None:
                return
            yield node

    def _runs(self, tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
        size = max(1, len(tokens)) if self._whole else self._pages.page_size
        for start in range(0, len(tokens) - size + 1, size):
            yield tuple(tokens[start : start + size])

    def _touch(self, path: Sequence[_Node]) -> None:
        for node in reversed(path):
            self._by_age[node] = None
            self._by_age.move_to_end(node)

    def _remove(self, node: _Node) -> None:
        del self._by_age[node]
        assert node.parent is not None
        del node.parent.children[node.run]
        self._pages.release(node.pages)
