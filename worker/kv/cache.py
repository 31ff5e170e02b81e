"""Places for tokens: gives sequences their pages, finds what is already computed, and keeps what
may be used again.

Plain Python over the page table and the prefix tree. Invariant: a page is free, or held by running
sequences, by the tree, or by both; only its first holder writes to it, and never where another one
reads.
"""

from worker.kv.pages import PageTable
from worker.kv.prefix import PrefixTree
from worker.runners.base import RunnerSpec
from worker.sequence import Slice, Status, TokenSequence


class Cache:
    """`reuse` of the spec says what may be shared: any `prefix`, a whole `prompt`, or nothing
    between requests.

    Of `num_started` sequences `num_hits` found something computed, `num_hit_tokens` in all.
    """

    def __init__(self, spec: RunnerSpec) -> None:
        self.pages = PageTable(spec.num_pages, spec.page_size)
        self.tree = PrefixTree(self.pages, whole_prompts=spec.reuse == "prompt")
        self._reuse = spec.reuse
        self.num_started = self.num_hits = self.num_hit_tokens = 0

    def can_hold(self, sequence: TokenSequence) -> bool:
        """Whether the sequence would fit with everything else gone."""
        return self.pages.pages_for(sequence.num_tokens_at_most) <= self.pages.num_pages

    def allocate(self, sequence: TokenSequence, *, num_running: int) -> bool:
        """Pages for all tokens of a sequence that starts or starts again, found ones first; False
        for lack of room.

        A page is left for every running sequence to grow into. A copy of a page needs room beside
        the page itself: a sequence that has the store for itself and lacks it does without what is
        known.
        """
        if self._place(sequence, *self._known(sequence), spare=num_running):
            return True
        return num_running == 0 and self._place(sequence, [], 0, spare=0)

    def _place(
        self, sequence: TokenSequence, known: list[int], num_known: int, *, spare: int
    ) -> bool:
        computed = min(
            num_known, sequence.num_tokens if sequence.is_scoring else sequence.num_tokens - 1
        )
        num_shared, is_partial = divmod(computed, self.pages.page_size)
        if is_partial and sequence.is_scoring and computed == sequence.num_tokens:
            num_shared, is_partial = num_shared + 1, 0  # nothing will be written behind the context
        held = known[: num_shared + bool(is_partial)]
        self.pages.share(held)
        own = self._reserve(self.pages.pages_for(sequence.num_tokens) - num_shared, spare=spare)
        if own is None:
            self.pages.release(held)
            return False
        sequence.pages = held[:num_shared] + own
        sequence.source_page = held[num_shared] if is_partial else None
        sequence.num_computed = computed
        if sequence.num_cached is None:  # what it finds when it starts again is its own
            sequence.num_cached = computed
            self.num_started += 1
            self.num_hits += computed > 0
            self.num_hit_tokens += computed
        return True

    def grow(self, sequence: TokenSequence) -> bool:
        """A page more if the sequence's next token needs one; False for lack of room."""
        missing = self.pages.pages_for(sequence.num_tokens) - len(sequence.pages)
        if missing <= 0:
            return True
        own = self._reserve(missing)
        if own is None:
            return False
        sequence.pages += own
        return True

    def commit(self, part: Slice) -> None:
        """Note what a slice computed of a prompt, so that it may be shared from now on."""
        sequence = part.sequence
        if sequence.source_page is not None:
            self.pages.release([sequence.source_page])
            sequence.source_page = None
        prompt = sequence.encoded.prompt_ids
        was_unfinished = sequence.num_computed < len(prompt)
        sequence.num_computed += part.num_tokens
        if not was_unfinished or self._reuse == "none":
            return
        if self._reuse == "prefix" or sequence.num_computed >= len(prompt):
            self.tree.insert(sequence.salt, prompt[: sequence.num_computed], sequence.pages)

    def give_back(self, sequence: TokenSequence, *, keep: bool) -> None:
        """Free what a sequence holds; with `keep` its tokens stay known where any prefix may be
        shared."""
        if keep and self._reuse == "prefix":
            self.tree.insert(
                sequence.salt, sequence.token_ids[: sequence.num_computed], sequence.pages
            )
        self.pages.release(sequence.pages)
        if sequence.source_page is not None:
            self.pages.release([sequence.source_page])
        sequence.pages, sequence.source_page, sequence.num_computed, sequence.pooled = (
            [],
            None,
            0,
            None,
        )

    def is_being_computed(self, sequence: TokenSequence, others: list[TokenSequence]) -> bool:
        """Whether waiting pays: one of the `others` is to compute the same beginning, or a sister
        choice the prompt."""
        parent, prompt = sequence.forked_from, sequence.encoded.prompt_ids
        if (
            parent is not None
            and parent.status is not Status.FINISHED
            and parent.num_computed < len(prompt)
        ):
            return True
        shared = ((item, self._num_common(sequence, item)) for item in others)
        return any(common and self._num_computed(item) < common for item, common in shared)

    def _num_computed(self, sequence: TokenSequence) -> int:
        return (
            sequence.num_computed if sequence.status is Status.RUNNING else self._known(sequence)[1]
        )

    def _num_common(self, one: TokenSequence, other: TokenSequence) -> int:
        """How many first tokens the prompts of two sequences could share."""
        size, first, second = self.pages.page_size, one.encoded.prompt_ids, other.encoded.prompt_ids
        if not self._may_reuse(one) or one.salt != other.salt or first[:size] != second[:size]:
            return 0
        if self._reuse == "prompt":
            return len(first) if first == second else 0
        length = min(len(first), len(second)) // size * size
        pages = range(0, length, size)
        return next((at for at in pages if first[at : at + size] != second[at : at + size]), length)

    def _known(self, sequence: TokenSequence) -> tuple[list[int], int]:
        """Pages that hold the sequence's first tokens, and how many: a sister choice's prompt, or
        what the tree has."""
        prompt, parent = sequence.encoded.prompt_ids, sequence.forked_from
        if (
            parent is not None
            and parent.status is Status.RUNNING
            and parent.num_computed >= len(prompt)
        ):
            return parent.pages[: self.pages.pages_for(len(prompt))], len(prompt)
        if not self._may_reuse(sequence):
            return [], 0
        return self.tree.match(
            sequence.salt, sequence.token_ids if self._reuse == "prefix" else prompt
        )

    def _may_reuse(self, sequence: TokenSequence) -> bool:
        """Keys and values that are found bring no states with them: what is pooled must be
        computed."""
        return self._reuse != "none" and not sequence.encoded.is_pooled

    def _reserve(self, count: int, *, spare: int = 0) -> list[int] | None:
        """Free pages, evicted from the tree if need be, so that `spare` more would be left."""
        missing = count + spare - self.pages.num_free
        if missing > 0 and self.tree.evict(missing) < missing:
            return None
        return self.pages.reserve(count)
