"""Properties of scheduling, pages and sharing, with a runner that checks every position it reads.

That runner is `ghost.py`.
"""

from collections import Counter
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from shared.messages import Done, Failed, Sampling
from tests.fixtures.planned import PLANS, TOKENS, PlannedSequence, Reuse, check, work
from tests.fixtures.worker.ghost import NUM_LAYERS, Ghost, answer
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
    """B85, B91: Free and held pages add up to the total. `reserve` returns None exactly when there
    is no room."""
    table = PageTable(num_pages=12, page_size=4)
    held: list[list[int]] = []
    for move, size in moves:
        if move == "reserve":
            num_wanted = size % 5
            num_free = table.num_free
            reserved = table.reserve(num_wanted)
            assert (reserved is None) == (num_wanted > num_free)
            if reserved is not None:
                held.append(reserved)
        elif held and move == "share":
            shared = list(held[size % len(held)])
            table.share(shared)
            held.append(shared)
        elif held:
            released = held.pop(size % len(held))
            table.release(released)

        num_holders: Counter[int] = Counter()
        for pages in held:
            num_holders.update(pages)
        assert table.num_free + len(num_holders) == 12
        for page in range(12):
            assert table.num_holders(page) == num_holders[page]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), TOKENS, st.integers(0, 4)), max_size=25))
def test_the_tree_finds_the_longest_prefix_and_frees_what_it_says(
    moves: list[tuple[str, tuple[int, ...], int]],
) -> None:
    """B81 to B86: The tree agrees with a plain dict of every known prefix of whole pages."""
    table = PageTable(num_pages=40, page_size=4)
    tree = PrefixTree(table, whole_prompts=False)
    known: dict[tuple[str, tuple[int, ...]], int] = {}
    for salt, tokens, num_to_evict in moves:
        prefixes = [tokens[:end] for end in range(4, len(tokens) + 1, 4)]
        expected = []
        for prefix in prefixes:
            if (salt, prefix) in known:
                expected.append(known[salt, prefix])
        matched, length = tree.match(salt, tokens)
        assert matched == expected
        assert length == 4 * len(expected)

        pages = table.reserve(table.pages_for(len(tokens)))
        assert pages is not None
        tree.insert(salt, tokens, pages)
        # The last page may be filled in part only: then it belongs to no prefix.
        for prefix, page in zip(prefixes, pages, strict=False):
            known.setdefault((salt, prefix), page)
        table.release(pages)
        assert tree.num_pages == len(known)
        assert tree.num_pages == 40 - table.num_free

        num_free = table.num_free
        num_evicted = tree.evict(num_to_evict)
        assert num_evicted == table.num_free - num_free
        assert num_evicted == min(num_to_evict, 40 - num_free)

        for key, page in list(known.items()):
            if table.num_holders(page) == 0:
                del known[key]
        for known_salt, known_tokens in known:
            if len(known_tokens) > 4:
                assert (known_salt, known_tokens[:-4]) in known, "a parent went before its child"


def test_eviction_is_least_recently_used_and_spares_what_is_held() -> None:
    """B86: The tree evicts the page that was least recently used, and never a held one."""
    table = PageTable(num_pages=3, page_size=1)
    tree = PrefixTree(table, whole_prompts=False)
    for token in (1, 2, 3):
        pages = table.reserve(1)
        assert pages is not None
        tree.insert("", (token,), pages)
        table.release(pages)

    # Each match counts as a use: now 3 is the least recently used.
    tree.match("", (1,))
    held, _ = tree.match("", (2,))
    table.share(held)

    assert tree.evict(1) == 1
    assert tree.match("", (1,))[1] == 1
    assert tree.match("", (2,))[1] == 1
    assert tree.match("", (3,))[1] == 0

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
    st.sampled_from([(0, 100), (2, 100), (7, 100), (7, 60), (3, 0)]),
)
def test_any_schedule_gives_the_same_answers(
    plans: list[PlannedSequence],
    reuse: Reuse,
    is_prefix_lm: bool,
    num_pages: int,
    max_batch: int,
    step_tokens: int,
    drafts: tuple[int, int],
) -> None:
    """P3, B30, B71, B81-B85, B94: Every schedule gives the same answers and returns every page.

    Sequences are staggered, chunked, shared, forked, preempted, drafted and aborted. None reads a
    wrong position, and none waits for ever. Between two steps no page is held for drafts alone.
    """
    max_drafts, draft_percent = drafts
    if is_prefix_lm and reuse == "prefix":
        reuse = "prompt"
    ghost = Ghost(
        num_pages=num_pages,
        max_batch=max_batch,
        step_tokens=step_tokens,
        reuse=reuse,
        is_prefix_lm=is_prefix_lm,
        max_drafts=max_drafts,
        draft_percent=draft_percent,
    )
    emissions: list[Emission] = []
    engine = Engine(ghost, emissions.extend)
    cache = engine.scheduler.cache
    assert cache is not None

    # The plans arrive up to step 12 of the load: an idle engine goes on until then.
    num_steps = 0
    while num_steps < 14 or engine.has_work:
        for number, plan in enumerate(plans):
            if plan.at == num_steps:
                engine.submit(work(str(number), plan))
            if plan.cancelled_after is not None and plan.at + plan.cancelled_after == num_steps:
                engine.abort(str(number))
        engine.step()
        num_steps += 1
        assert num_steps < 3000, "somebody starves"
        for sequence in engine.scheduler.running:
            assert len(sequence.pages) <= cache.pages.pages_for(sequence.num_tokens)
            assert sequence.num_computed <= sequence.num_tokens

    assert ghost.num_faults == 0
    for step in ghost.steps:
        assert len(step) <= max_batch
    for number, plan in enumerate(plans):
        check(plan, [emission for emission in emissions if emission.key == str(number)])

    assert cache.pages.num_free + cache.tree.num_pages == num_pages
    cache.tree.evict(num_pages)
    assert cache.pages.num_free == num_pages


def ends_of(emissions: list[Emission]) -> dict[str, Done | Failed]:
    """Return the end of each request, by its key."""
    ends: dict[str, Done | Failed] = {}
    for emission in emissions:
        if emission.ended is not None:
            ends[emission.key] = emission.ended
    return ends


def run(ghost: Ghost, works: list[SequenceWork]) -> dict[str, Done]:
    """Submit all works at once. Return the end of each, by its key."""
    emissions: list[Emission] = []
    engine = Engine(ghost, emissions.extend)
    for request in works:
        engine.submit(request)
    while engine.has_work:
        engine.step()

    done: dict[str, Done] = {}
    for key, end in ends_of(emissions).items():
        assert isinstance(end, Done), end
        done[key] = end
    return done


def generate(
    key: str, prompt: tuple[int, ...], max_tokens: int, *, n: int = 1, tenant: str = ""
) -> SequenceWork:
    encoded = Encoded(prompt, max_tokens)
    sampling = Sampling(max_tokens, seed=1, n=n)
    return SequenceWork(key, encoded, sampling, tenant=tenant)


def tokens_by_key(step: list[tuple[str, int, int]]) -> dict[str, int]:
    """Return how many tokens of each request a step computes."""
    return {key: num_tokens for key, num_tokens, _ in step}


def steps_with(key: str, steps: list[dict[str, int]]) -> list[int]:
    """Return the numbers of the steps that compute tokens of a request."""
    return [number for number, step in enumerate(steps) if key in step]


@pytest.mark.parametrize("is_prefix_lm", [False, True])
def test_choices_share_their_prompt(is_prefix_lm: bool) -> None:
    """B52: Four choices compute their prompt once, and each adds its own last token of it."""
    ghost = Ghost(num_pages=40, is_prefix_lm=is_prefix_lm, reuse="none", step_tokens=64)
    prompt = tuple(range(1, 23))

    done = run(ghost, [generate("a", prompt, 3, n=4)])

    assert done["a"].num_completion_tokens == 12
    # The prompt, its last token for three more choices, and two tokens of each choice.
    assert ghost.num_computed == 22 + 3 * 1 + 4 * 2


def test_a_known_prefix_is_not_computed_again_and_not_shared_between_tenants() -> None:
    """B82: A tenant's next request reuses 4 of 5 pages and counts the hit. Another tenant reuses
    none."""
    ghost = Ghost(num_pages=40, step_tokens=64)
    prefix = tuple(range(1, 19))
    emissions: list[Emission] = []
    engine = Engine(ghost, emissions.extend)

    for key, tenant in (("a", "x"), ("b", "x"), ("c", "y")):
        engine.submit(generate(key, (*prefix, ord(key), 9), 1, tenant=tenant))
        while engine.has_work:
            engine.step()

    num_cached = {}
    for key, end in ends_of(emissions).items():
        assert isinstance(end, Done)
        num_cached[key] = end.num_cached_tokens
    assert num_cached == {"a": 0, "b": 16, "c": 0}
    assert ghost.num_computed == 20 + 4 + 20


def test_what_a_preempted_sequence_finds_again_is_no_hit() -> None:
    """A preempted sequence that reuses its own pages counts no cached token.

    Two sequences outgrow the store, and the later one starts again over its own pages.
    """
    ghost = Ghost(num_pages=12, step_tokens=64)

    done = run(ghost, [generate("a", (1,) * 8, 24), generate("b", (2,) * 8, 24)])

    assert ghost.num_computed > 2 * (8 + 23), "nobody gave way: this proves nothing"
    assert done.keys() == {"a", "b"}
    assert done["a"].num_cached_tokens == 0
    assert done["b"].num_cached_tokens == 0


def test_a_repeated_prompt_costs_one_token_in_a_prefix_lm() -> None:
    """Whole-prompt reuse computes only the last prompt token again, over the stored prompt."""
    ghost = Ghost(num_pages=40, step_tokens=64, reuse="prompt", is_prefix_lm=True)
    prompt = tuple(range(1, 20))

    run(ghost, [generate("a", prompt, 1), generate("b", prompt, 1)])

    assert ghost.num_computed == 19 + 1


def test_arrivals_with_one_beginning_wait_for_the_first() -> None:
    """Eight requests with one prefix that arrive at once compute it once."""
    ghost = Ghost(num_pages=80, max_batch=8, step_tokens=256)
    prefix = tuple(range(1, 41))
    works = [generate(str(number), (*prefix, 50 + number), 1) for number in range(8)]

    run(ghost, works)

    assert ghost.num_computed == 41 + 7 * 1


def test_decoding_goes_on_beside_a_long_prompt_and_short_prompts_pass_it() -> None:
    """While a prompt of many budgets is computed, every step decodes, and a short prompt passes
    it."""
    ghost = Ghost(num_pages=400, step_tokens=64, reuse="none")
    decoding = generate("d", (1,), 40)
    long = generate("long", (2,) * 320, 1)
    short = generate("short", (3,) * 8, 1)

    run(ghost, [decoding, long, short])

    steps = [tokens_by_key(step) for step in ghost.steps]
    long_steps = steps_with("long", steps)
    # Nobody decodes in the first step.
    assert len(long_steps) == 1 + (320 - 64 + 8) // 16 + 1
    for number in long_steps[1:]:
        assert "d" in steps[number]
        # A quarter of the budget, and the one token that is decoded.
        assert sum(steps[number].values()) <= 17
    assert max(steps_with("short", steps)) < 3


def test_bulk_work_stands_back_for_a_prompt_but_not_for_ever() -> None:
    """Beside a long interactive prompt a bulk sequence decodes in every fifth step.

    The prompt has the whole budget of the other steps. A sequence of the class `default` decodes in
    all steps.
    """
    ghost = Ghost(num_pages=400, step_tokens=64, reuse="none")
    bulk = replace(generate("bulk", (1,), 60), priority="bulk")
    watched = replace(generate("watched", (4,), 60), priority="default")
    emissions: list[Emission] = []
    engine = Engine(ghost, emissions.extend)
    engine.submit(bulk)
    engine.step()
    engine.submit(replace(generate("long", (2,) * 640, 1), priority="interactive"))
    while engine.has_work:
        engine.step()

    steps = [tokens_by_key(step) for step in ghost.steps]
    long_steps = steps_with("long", steps)
    assert [number for number in long_steps if "bulk" in steps[number]] == [5, 10]
    assert [sum(steps[number].values()) for number in long_steps[:5]] == [64, 64, 64, 64, 17]
    after = range(long_steps[-1] + 1, len(steps))
    assert all("bulk" in steps[number] for number in after)

    ghost = Ghost(num_pages=400, step_tokens=64, reuse="none")
    run(ghost, [watched, replace(generate("long", (2,) * 320, 1), priority="interactive")])
    steps = [tokens_by_key(step) for step in ghost.steps]
    assert all("watched" in steps[number] for number in steps_with("long", steps)[1:])


def test_a_prompt_that_is_seen_whole_is_cut_between_layers() -> None:
    """In a prefix-LM, too, every step decodes, and a short prompt passes a long one."""
    ghost = Ghost(num_pages=400, step_tokens=32, is_prefix_lm=True, reuse="none")
    decoding = generate("d", (1,), 60)
    long = generate("long", (2,) * 80, 1)
    short = generate("short", (3,) * 8, 1)

    run(ghost, [decoding, long, short])

    steps = [tokens_by_key(step) for step in ghost.steps]
    long_steps = steps_with("long", steps)
    for number in long_steps[1:]:
        assert "d" in steps[number]
        costs = []
        for key, num_layers in ghost.layers[number].items():
            costs.append(steps[number][key] * num_layers / NUM_LAYERS)
        # A quarter of the budget, and what a layer of the long prompt may exceed it by.
        assert sum(costs) <= 8 + 80 / NUM_LAYERS
    assert sum(layers.get("long", 0) for layers in ghost.layers) == NUM_LAYERS
    assert max(steps_with("short", steps)) < max(long_steps)


@pytest.mark.parametrize(
    ("step_tokens", "num_steps"), [(256, 1), (80, 1), (79, 2), (16, 6), (1, 32)]
)
def test_a_prompt_alone_has_the_whole_budget(step_tokens: int, num_steps: int) -> None:
    ghost = Ghost(num_pages=400, step_tokens=step_tokens, is_prefix_lm=True, reuse="none")

    run(ghost, [generate("long", (2,) * 80, 1)])

    assert len(ghost.steps) == num_steps
    assert ghost.num_computed == 80


def test_a_prompt_that_is_paused_between_layers_begins_again() -> None:
    """A prompt of a better class takes the only row from one that is half computed."""
    ghost = Ghost(num_pages=400, max_batch=1, step_tokens=16, is_prefix_lm=True, reuse="none")
    emissions: list[Emission] = []
    engine = Engine(ghost, emissions.extend)
    engine.submit(replace(generate("first", (2,) * 80, 2), priority="bulk"))
    for _ in range(3):
        engine.step()
    engine.submit(replace(generate("better", (3,) * 80, 2), priority="interactive"))
    while engine.has_work:
        engine.step()

    num_layers = [layers.get("first", 0) for layers in ghost.layers]
    assert sum(num_layers) == 3 * 6 + NUM_LAYERS
    ends = ends_of(emissions)
    assert all(isinstance(end, Done) for end in ends.values())
    ids: list[int] = []
    for emission in emissions:
        if emission.key == "first":
            ids += emission.ids
    assert ids == answer((2,) * 80, 2, fold(1, 0))


@pytest.mark.parametrize(
    ("num_pages", "is_prefix_lm", "halves"),
    [(40, False, [4, 2, 1]), (40, True, []), (0, False, [])],
)
def test_a_slice_is_halved_as_far_as_it_can_be_cut(
    num_pages: int, is_prefix_lm: bool, halves: list[int]
) -> None:
    """A slice is halved down to one token.

    It is never cut where the prompt must be seen whole, nor where no keys and values are stored to
    continue from.
    """
    ghost = Ghost(num_pages=num_pages, is_prefix_lm=is_prefix_lm, reuse="none")
    scheduler = Scheduler(ghost.spec)
    scheduler.add(TokenSequence("a", Encoded((1,) * 8, 1), Sampling(1, seed=1)))
    [part] = scheduler.plan()

    # The bound keeps a scheduler that halves for ever from hanging the test.
    sizes: list[int] = []
    half = scheduler.halve(part)
    while half is not None and len(sizes) < 9:
        sizes.append(half.num_tokens)
        half = scheduler.halve(half)

    assert sizes == halves


def test_what_can_never_fit_is_refused_and_blocks_nobody() -> None:
    """A request larger than the store fails, and the one behind it is answered."""
    ghost = Ghost(num_pages=2)
    cache = Cache(ghost.spec)
    assert cache.pages.num_pages == 2
    emissions: list[Emission] = []
    engine = Engine(ghost, emissions.extend)

    engine.submit(generate("big", (1,) * 6, 4))
    engine.submit(generate("fits", (1,) * 5, 4))
    while engine.has_work:
        engine.step()

    ends = ends_of(emissions)
    assert ends.keys() == {"big", "fits"}
    assert isinstance(ends["big"], Failed)
    assert isinstance(ends["fits"], Done)


def test_a_sequence_that_fills_the_store_does_without_its_known_prompt() -> None:
    """A sequence that needs every page computes its prompt again instead of waiting for ever.

    Reuse would copy the prompt's last page, and the store has no room for both.
    """
    ghost = Ghost(num_pages=9, reuse="prompt", is_prefix_lm=True)
    prompt = tuple(range(1, 23))
    replayed = tuple(answer(prompt, 11, fold(1, 0)))
    sampling = Sampling(12, seed=1)
    full = SequenceWork("b", Encoded(prompt, 12), sampling, replayed_ids=(replayed,))
    emissions: list[Emission] = []
    engine = Engine(ghost, emissions.extend)

    for request in (generate("a", prompt, 1), full):
        engine.submit(request)
        for _ in range(40):
            engine.step()

    ends = ends_of(emissions)
    assert ends.keys() == {"a", "b"}
    assert isinstance(ends["a"], Done)
    assert isinstance(ends["b"], Done)
