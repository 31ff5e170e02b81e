"""Scheduling, pages and sharing as properties, on a runner that checks every place it reads
(`ghost.py`)."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from shared.messages import Done, Sampling
from tests.fixtures.planned import PLANS, TOKENS, PlannedSequence, Reuse, check, work
from tests.fixtures.worker.ghost import Ghost, answer
from worker.engine.engine import Engine
from worker.engine.noise import fold
from worker.engine.request import Emission, SequenceWork
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Encoded, TokenSequence
from worker.kv.cache import Cache
from worker.kv.pages import PageTable
from worker.kv.prefix import PrefixTree


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["reserve", "share", "release"]), st.integers(1, 40)), max_size=60
    )
)
def test_pages_are_free_or_held(moves: list[tuple[str, int]]) -> None:
    """B85, B91: free + held == total; reserve answers None exactly when there is no room."""
    table = PageTable(num_pages=12, page_size=4)
    held = []
    for move, size in moves:
        if move == "reserve":
            room = table.num_free
            pages = table.reserve(size % 5)
            assert (pages is None) == (size % 5 > room)
            held += [pages] if pages is not None else []
        elif held and move == "share":
            held.append(list(held[size % len(held)]))
            table.share(held[-1])
        elif held:
            table.release(held.pop(size % len(held)))
        flat = [page for pages in held for page in pages]
        assert table.num_free + len(set(flat)) == 12
        assert all(table.num_holders(page) == flat.count(page) for page in range(12))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), TOKENS, st.integers(0, 4)), max_size=25))
def test_the_tree_finds_the_longest_prefix_and_frees_what_it_says(
    moves: list[tuple[str, tuple[int, ...], int]],
) -> None:
    """B81 to B86: against a plain dict of every known page-aligned prefix."""
    pages = PageTable(num_pages=40, page_size=4)
    tree = PrefixTree(pages, whole_prompts=False)
    known: dict[tuple[str, tuple[int, ...]], int] = {}
    for salt, tokens, num_evicted in moves:
        found, length = tree.match(salt, tokens)
        prefixes = [(salt, tokens[:end]) for end in range(4, len(tokens) + 1, 4)]
        expected = [known[prefix] for prefix in prefixes if prefix in known]
        assert found == expected
        assert length == 4 * len(expected)
        own = pages.reserve(pages.pages_for(len(tokens)))
        assert own is not None
        tree.insert(salt, tokens, own)
        for prefix, page in zip(prefixes, own, strict=False):
            known.setdefault(prefix, page)
        pages.release(own)
        assert tree.num_pages == len(known) == 40 - pages.num_free
        before = pages.num_free
        assert tree.evict(num_evicted) == pages.num_free - before == min(num_evicted, 40 - before)
        known = {
            (salt, run): page for (salt, run), page in known.items() if pages.num_holders(page)
        }
        assert all((salt, run[:-4]) in known for salt, run in known if len(run) > 4), (
            "a parent went before its child"
        )


def test_eviction_is_least_recently_used_and_spares_what_is_held() -> None:
    """B86."""
    pages = PageTable(num_pages=3, page_size=1)
    tree = PrefixTree(pages, whole_prompts=False)
    for token in (1, 2, 3):
        own = pages.reserve(1)
        assert own is not None
        tree.insert("", (token,), own)
        pages.release(own)
    tree.match("", (1,))
    held, _ = tree.match("", (2,))
    pages.share(held)
    assert tree.evict(1) == 1
    assert [bool(tree.match("", (token,))[1]) for token in (1, 2, 3)] == [True, True, False]
    assert tree.evict(5) == 1
    assert tree.match("", (2,))[0] == held


@settings(max_examples=250, deadline=None)
@given(
    st.lists(PLANS, min_size=1, max_size=9),
    st.sampled_from(["prefix", "prompt", "none"]),
    st.booleans(),
    st.integers(9, 24),
    st.integers(1, 4),
    st.sampled_from([1, 5, 16, 64]),
)
def test_any_schedule_gives_the_same_answers(
    plans: list[PlannedSequence],
    reuse: Reuse,
    is_prefix_lm: bool,
    num_pages: int,
    max_batch: int,
    step_tokens: int,
) -> None:
    """P3, B30, B71, B81-B85, B94: staggered, chunked, shared, forked, preempted, aborted - nobody
    reads a wrong place, every answer is the answer, every page comes back, nobody waits for
    ever."""
    reuse = "prompt" if is_prefix_lm and reuse == "prefix" else reuse
    ghost = Ghost(
        num_pages=num_pages,
        max_batch=max_batch,
        step_tokens=step_tokens,
        reuse=reuse,
        is_prefix_lm=is_prefix_lm,
    )
    said: list[Emission] = []
    engine = Engine(ghost, said.extend)
    steps = 0
    while steps < 14 or engine.has_work:
        for number, plan in enumerate(plans):
            if plan.at == steps:
                engine.submit(work(str(number), plan))
            if plan.cancelled_after is not None and plan.at + plan.cancelled_after == steps:
                engine.abort(str(number))
        engine.step()
        steps += 1
        assert steps < 3000, "somebody starves"
    assert all(len(step) <= max_batch for step in ghost.steps)
    for number, plan in enumerate(plans):
        check(plan, [item for item in said if item.key == str(number)])
    cache = engine._scheduler._cache
    assert cache is not None
    assert cache.pages.num_free + cache.tree.num_pages == num_pages
    cache.tree.evict(num_pages)
    assert cache.pages.num_free == num_pages


def run(ghost: Ghost, works: list[SequenceWork]) -> dict[str, Done]:
    said: list[Emission] = []
    engine = Engine(ghost, said.extend)
    for item in works:
        engine.submit(item)
    while engine.has_work:
        engine.step()
    return {item.key: item.ended for item in said if isinstance(item.ended, Done)}


def generate(
    key: str, prompt: tuple[int, ...], max_tokens: int, *, n: int = 1, tenant: str = ""
) -> SequenceWork:
    return SequenceWork(
        key, Encoded(prompt, max_tokens), Sampling(max_tokens, 1, n=n), tenant=tenant
    )


@pytest.mark.parametrize("is_prefix_lm", [False, True])
def test_choices_share_their_prompt(is_prefix_lm: bool) -> None:
    """B52: one prompt is computed once for four choices, which each add their own last token of
    it."""
    ghost = Ghost(num_pages=40, is_prefix_lm=is_prefix_lm, reuse="none", step_tokens=64)
    done = run(ghost, [generate("a", tuple(range(1, 23)), 3, n=4)])
    assert done["a"].num_completion_tokens == 12
    assert ghost.num_computed == 22 + 3 * 1 + 4 * 2


def test_a_known_prefix_is_not_computed_again_and_not_shared_between_tenants() -> None:
    """B82: 4 of 5 pages are found; the hit is counted; another tenant finds nothing."""
    ghost = Ghost(num_pages=40, step_tokens=64)
    prompt = tuple(range(1, 21))
    said: list[Emission] = []
    engine = Engine(ghost, said.extend)
    for key, tenant in (("a", "x"), ("b", "x"), ("c", "y")):
        engine.submit(generate(key, (*prompt[:18], ord(key), 9), 1, tenant=tenant))
        while engine.has_work:
            engine.step()
    cached = {
        item.key: item.ended.num_cached_tokens for item in said if isinstance(item.ended, Done)
    }
    assert cached == {"a": 0, "b": 16, "c": 0}
    assert ghost.num_computed == 20 + 4 + 20


def test_what_a_preempted_sequence_finds_again_is_no_hit() -> None:
    """Two sequences outgrow the store: the later one starts again over pages of its own, and was
    spared nothing."""
    ghost = Ghost(num_pages=12, step_tokens=64)
    done = run(ghost, [generate("a", (1,) * 8, 24), generate("b", (2,) * 8, 24)])
    assert ghost.num_computed > 2 * (8 + 23), "nobody gave way: this proves nothing"
    assert [item.num_cached_tokens for item in done.values()] == [0, 0]


def test_a_repeated_prompt_costs_one_token_in_a_prefix_lm() -> None:
    """Whole-prompt reuse: the last prompt token is run again over the stored prompt."""
    ghost = Ghost(num_pages=40, step_tokens=64, reuse="prompt", is_prefix_lm=True)
    run(ghost, [generate("a", tuple(range(1, 20)), 1), generate("b", tuple(range(1, 20)), 1)])
    assert ghost.num_computed == 19 + 1


def test_arrivals_with_one_beginning_wait_for_the_first() -> None:
    """Eight requests over one prefix at once compute it once."""
    ghost = Ghost(num_pages=80, max_batch=8, step_tokens=256)
    prefix = tuple(range(1, 41))
    run(ghost, [generate(str(i), (*prefix, 50 + i), 1) for i in range(8)])
    assert ghost.num_computed == 41 + 7 * 1


def test_decoding_goes_on_beside_a_long_prompt_and_short_prompts_pass_it() -> None:
    """A prompt of many budgets: every step decodes, and a short prompt is through before the long
    one."""
    ghost = Ghost(num_pages=400, step_tokens=16, reuse="none")
    run(
        ghost,
        [generate("d", (1,), 40), generate("long", (2,) * 320, 1), generate("short", (3,) * 8, 1)],
    )
    steps = [{key: tokens for key, tokens, _ in step} for step in ghost.steps]
    during = [step for step in steps if "long" in step]
    assert len(during) >= 20
    assert all("d" in step for step in during)
    assert all(sum(step.values()) <= 17 for step in during)
    assert max(i for i, step in enumerate(steps) if "short" in step) < 3


def test_after_a_prompt_that_cannot_be_cut_decoding_has_its_share() -> None:
    """Prefix-LM: a prompt of five budgets is followed by four steps without a prompt."""
    ghost = Ghost(num_pages=400, step_tokens=16, is_prefix_lm=True, reuse="none")
    run(
        ghost,
        [generate("d", (1,), 40), generate("long", (2,) * 80, 1), generate("next", (3,) * 8, 1)],
    )
    steps = [{key: tokens for key, tokens, _ in step} for step in ghost.steps]
    at = next(i for i, step in enumerate(steps) if "long" in step)
    assert [set(step) for step in steps[at + 1 : at + 5]] == [{"d"}] * 4
    assert "next" in steps[at + 5] or any("next" in step for step in steps[:at])


@pytest.mark.parametrize(("length", "num_steps"), [(80, 4), (72, 3)])
def test_what_a_prompt_took_too_much_is_paid_and_then_forgotten(
    length: int, num_steps: int
) -> None:
    """One that comes behind a prompt of five budgets starts four steps later: not at once, and not
    never. Half a budget that is left is enough to start with."""
    ghost = Ghost(num_pages=400, step_tokens=16, is_prefix_lm=True, reuse="none")
    engine = Engine(ghost, lambda said: None)
    engine.submit(generate("d", (1,), 60))
    engine.step()

    def steps_until(key: str) -> int:
        """How many steps are made before the one that computes this prompt."""
        before = len(ghost.steps)
        while not any(item == key for item, _, _ in ghost.steps[-1]):
            engine.step()
            assert len(ghost.steps) - before < 20, "it never starts"
        return len(ghost.steps) - 1 - before

    engine.submit(generate("long", (2,) * length, 1))
    assert steps_until("long") == 0
    engine.submit(generate("next", (3,) * 16, 1))
    assert steps_until("next") == num_steps
    engine.submit(generate("last", (4,) * 8, 1))
    assert steps_until("last") == 0


@pytest.mark.parametrize(
    ("num_pages", "is_prefix_lm", "halves"),
    [(40, False, [4, 2, 1]), (40, True, []), (0, False, [])],
)
def test_a_slice_is_halved_as_far_as_it_can_be_cut(
    num_pages: int, is_prefix_lm: bool, halves: list[int]
) -> None:
    """Not at all where the prompt must be seen whole, or where there are no keys and values to go
    on from."""
    scheduler = Scheduler(Ghost(num_pages=num_pages, is_prefix_lm=is_prefix_lm, reuse="none").spec)
    scheduler.add(TokenSequence("a", Encoded((1,) * 8, 1), Sampling(1, 1)))
    [part] = scheduler.plan()
    sizes = []
    while (half := scheduler.halve(part)) is not None and len(sizes) < 9:
        part = half
        sizes.append(part.num_tokens)
    assert sizes == halves


def test_what_can_never_fit_is_refused_and_blocks_nobody() -> None:
    ghost = Ghost(num_pages=2)
    cache = Cache(ghost.spec)
    assert cache.pages.num_pages == 2
    said: list[Emission] = []
    engine = Engine(ghost, said.extend)
    engine.submit(generate("big", (1,) * 6, 4))
    engine.submit(generate("fits", (1,) * 5, 4))
    while engine.has_work:
        engine.step()
    ended = {item.key: type(item.ended).__name__ for item in said if item.ended is not None}
    assert ended == {"big": "Failed", "fits": "Done"}


def test_a_sequence_that_fills_the_store_does_without_its_known_prompt() -> None:
    """The prompt's last page would be copied: with all other pages taken by the sequence there is
    no room for both."""
    ghost = Ghost(num_pages=9, reuse="prompt", is_prefix_lm=True)
    prompt = tuple(range(1, 23))
    replayed = tuple(answer(prompt, 11, fold(1, 0)))
    full = SequenceWork("b", Encoded(prompt, 12), Sampling(12, 1), replayed_ids=(replayed,))
    done: dict[str, Done] = {}
    said: list[Emission] = []
    engine = Engine(ghost, said.extend)
    for item in (generate("a", prompt, 1), full):
        engine.submit(item)
        for _ in range(40):
            engine.step()
        done |= {item.key: item.ended for item in said if isinstance(item.ended, Done)}
    assert done.keys() == {"a", "b"}
