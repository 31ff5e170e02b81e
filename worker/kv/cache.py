"""The bookkeeping of the KV cache: pages of sequences, and prefixes that they share.

It is plain Python over the page table and the prefix tree. Invariant: a page is free, or held by
running sequences, by the tree, or by both. Only its first holder writes to it, and never where
another one reads.
"""

from worker.engine.runner import RunnerSpec
from worker.engine.sequence import Slice, Status, TokenSequence
from worker.kv.pages import PageTable
from worker.kv.prefix import PrefixTree


class Cache:
    """The pages of all sequences, and the prefixes that they may share.

    The spec's `reuse` says what requests may share: any `prefix`, a whole `prompt`, or nothing. Of
    `num_started` sequences `num_hits` shared pages with others, with `num_hit_tokens` tokens in
    all.
    """

    def __init__(self, spec: RunnerSpec) -> None:
        self.pages = PageTable(spec.num_pages, spec.page_size)
        self.tree = PrefixTree(self.pages, whole_prompts=spec.reuse == "prompt")
        self._reuse = spec.reuse
        self.num_started = 0
        self.num_hits = 0
        self.num_hit_tokens = 0

    def can_hold(self, sequence: TokenSequence) -> bool:
        """Return whether all pages together suffice for the sequence."""
        return self.pages.pages_for(sequence.num_tokens_at_most) <= self.pages.num_pages

    def allocate(self, sequence: TokenSequence, *, num_running: int) -> bool:
        """Give a sequence that starts, or starts again, the pages for all its tokens.

        Pages that hold its first tokens already are shared. One free page is left for each of the
        `num_running` sequences to grow into. Return False for lack of room.
        """
        known, num_known = self._known(sequence)
        if self._allocate(sequence, known, num_known, spare=num_running):
            return True
        if num_running:
            return False

        # A page that is copied needs room beside its copy. A sequence that runs alone and lacks
        # this room shares nothing and computes all its tokens, so that it can start.
        return self._allocate(sequence, [], 0, spare=0)

    def _allocate(
        self, sequence: TokenSequence, known: list[int], num_known: int, *, spare: int
    ) -> bool:
        # Sampling needs the state of the last token, so this token is always computed. The context
        # of a scoring sequence may be known whole.
        most_computed = sequence.num_tokens
        if not sequence.is_scoring:
            most_computed -= 1
        computed = min(num_known, most_computed)

        # A page in whose middle the sequence goes on writing is copied, not shared. But nothing is
        # ever written behind the context of a scoring sequence.
        num_shared, num_in_partial = divmod(computed, self.pages.page_size)
        needs_copy = num_in_partial > 0
        if needs_copy and sequence.is_scoring and computed == sequence.num_tokens:
            num_shared += 1
            needs_copy = False
        held = known[:num_shared]
        if needs_copy:
            held = known[: num_shared + 1]

        # Share first: `_reserve` may evict pages, and must not evict these.
        self.pages.share(held)
        num_new = self.pages.pages_for(sequence.num_tokens) - num_shared
        new = self._reserve(num_new, spare=spare)
        if new is None:
            self.pages.release(held)
            return False

        sequence.pages = held[:num_shared] + new
        sequence.source_page = held[num_shared] if needs_copy else None
        sequence.num_computed = computed
        # Count only the first start: what a paused sequence finds later is its own.
        if sequence.num_cached is None:
            sequence.num_cached = computed
            self.num_started += 1
            self.num_hits += computed > 0
            self.num_hit_tokens += computed
        return True

    def grow(self, sequence: TokenSequence, *, num_drafts: int = 0) -> bool:
        """Add the pages that the sequence's next token, and drafts behind it, need.

        Return False for lack of room.
        """
        num_tokens = sequence.num_tokens + num_drafts
        missing = self.pages.pages_for(num_tokens) - len(sequence.pages)
        if missing <= 0:
            return True
        new = self._reserve(missing)
        if new is None:
            return False
        sequence.pages += new
        return True

    def num_free_tokens(self, sequence: TokenSequence) -> int:
        """Return the number of tokens that fit into the sequence's pages behind its last token."""
        return len(sequence.pages) * self.pages.page_size - sequence.num_tokens

    def commit(self, part: Slice, *, num_accepted: int = 0) -> None:
        """Note the tokens that a slice computed, `num_accepted` drafts among them.

        The tokens of a prompt may be shared from now on. Pages that only wrong drafts have used are
        given back.
        """
        sequence = part.sequence
        # The step has copied the source page, so the sequence no longer holds it.
        if sequence.source_page is not None:
            self.pages.release([sequence.source_page])
            sequence.source_page = None

        prompt = sequence.encoded.prompt_ids
        was_unfinished = sequence.num_computed < len(prompt)
        sequence.num_computed += part.num_tokens + num_accepted
        # One more for the new token, which the next step computes.
        num_needed = max(sequence.num_tokens, sequence.num_computed + 1)
        num_pages = self.pages.pages_for(num_needed)
        self.pages.release(sequence.pages[num_pages:])
        del sequence.pages[num_pages:]
        if not was_unfinished or self._reuse == "none":
            return
        if self._reuse == "prefix" or sequence.num_computed >= len(prompt):
            self.tree.insert(sequence.salt, prompt[: sequence.num_computed], sequence.pages)

    def give_back(self, sequence: TokenSequence, *, keep: bool) -> None:
        """Release the pages of a sequence.

        With `keep` the tree keeps its tokens, if any prefix may be shared.
        """
        if keep and self._reuse == "prefix":
            computed = sequence.token_ids[: sequence.num_computed]
            self.tree.insert(sequence.salt, computed, sequence.pages)
        self.pages.release(sequence.pages)
        if sequence.source_page is not None:
            self.pages.release([sequence.source_page])
        sequence.pages = []
        sequence.source_page = None
        sequence.num_computed = 0
        sequence.pooled = None

    def is_being_computed(self, sequence: TokenSequence, others: list[TokenSequence]) -> bool:
        """Return whether another sequence is about to compute what this one needs.

        That is the prompt, by the first choice of the same job, or a common prefix, by one of the
        `others`. The sequence then gains by waiting.
        """
        parent = sequence.forked_from
        if parent is not None and parent.status is not Status.FINISHED:
            num_prompt = len(sequence.encoded.prompt_ids)
            if parent.num_computed < num_prompt:
                return True

        for other in others:
            num_common = self._num_common(sequence, other)
            if num_common and self._num_computed(other) < num_common:
                return True
        return False

    def _num_computed(self, sequence: TokenSequence) -> int:
        """Return how many tokens have pages: of a running sequence its own, else shared ones."""
        if sequence.status is Status.RUNNING:
            return sequence.num_computed
        _, num_known = self._known(sequence)
        return num_known

    def _num_common(self, one: TokenSequence, other: TokenSequence) -> int:
        """Return how many first tokens the prompts of two sequences could share."""
        size = self.pages.page_size
        first = one.encoded.prompt_ids
        second = other.encoded.prompt_ids
        if not self._may_reuse(one) or one.salt != other.salt:
            return 0
        if first[:size] != second[:size]:
            return 0
        if self._reuse == "prompt":
            return len(first) if first == second else 0

        length = min(len(first), len(second)) // size * size
        for start in range(0, length, size):
            end = start + size
            if first[start:end] != second[start:end]:
                return start
        return length

    def _known(self, sequence: TokenSequence) -> tuple[list[int], int]:
        """Return the pages that hold the sequence's first tokens, and the number of these tokens.

        The pages are those of the prompt of the job's first choice, or those in the tree.
        """
        prompt = sequence.encoded.prompt_ids
        parent = sequence.forked_from
        if parent is not None and parent.status is Status.RUNNING:
            num_prompt = len(prompt)
            if parent.num_computed >= num_prompt:
                return parent.pages[: self.pages.pages_for(num_prompt)], num_prompt
        if not self._may_reuse(sequence):
            return [], 0
        tokens = sequence.token_ids if self._reuse == "prefix" else prompt
        return self.tree.match(sequence.salt, tokens)

    def _may_reuse(self, sequence: TokenSequence) -> bool:
        """Return whether the sequence may share computed keys and values.

        Shared pages hold no states, so a sequence whose states are pooled computes all its tokens.
        """
        return self._reuse != "none" and not sequence.encoded.is_pooled

    def _reserve(self, count: int, *, spare: int = 0) -> list[int] | None:
        """Take `count` free pages and leave `spare` more, if need be by evicting from the tree.

        Return None for lack of room.
        """
        missing = count + spare - self.pages.num_free
        if missing > 0 and self.tree.evict(missing) < missing:
            return None
        return self.pages.reserve(count)
