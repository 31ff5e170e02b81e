"""Drafts: how many are planned, and that answers are those of steps without them, bit by bit."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from scripts.train.problems.streams import held_out
from shared.errors import FleetError
from shared.messages import Done, Failed, Generate, Sampling
from shared.settings.settings import DEFAULT_MODEL
from tests.fixtures.tiny_hrm_text import PROMPTS, write_tiny
from tests.fixtures.worker.ghost import Ghost, answer
from tests.fixtures.worker.options import options_for
from worker.engine import scheduler
from worker.engine.drafts import (
    DraftPolicy,
    best_counts,
    cost_of_drafts,
    cost_of_rows,
    gain,
)
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import OutOfMemory
from worker.engine.sequence import Encoded, Slice, StepResult, TokenSequence
from worker.kv.attention import AttentionPlan
from worker.kv.store import KVStore
from worker.models import linear
from worker.models.hrm_text import HrmTextShape, passes_of
from worker.native.library import library
from worker.runners import hrm_text, paged
from worker.runners.net import Draft
from worker.runners.paged import PagedRunner

HALF = 0.5


def sequence() -> TokenSequence:
    return TokenSequence("a", Encoded((1,), 100), Sampling(100, seed=0))


def policy_of(max_drafts: int, cost: float) -> DraftPolicy:
    return DraftPolicy(max_drafts, cost, max_batch=16)


def learnt(policy: DraftPolicy, outcomes: Sequence[bool]) -> TokenSequence:
    """Return a sequence whose drafts were right or wrong one by one."""
    drafting = sequence()
    for outcome in outcomes:
        policy.note(drafting, num_drafts=1, num_accepted=int(outcome))
    return drafting


def test_right_drafts_get_more_and_wrong_ones_none() -> None:
    policy = policy_of(7, HALF)

    good = learnt(policy, [True] * 40)
    mixed = learnt(policy, [True, True, True, False] * 15)
    bad = learnt(policy, [False] * 40)

    [good_count] = policy.plan([good], [7])
    [mixed_count] = policy.plan([mixed], [7])
    [bad_count] = policy.plan([bad], [7])
    assert good_count >= 5
    assert 0 < mixed_count < good_count
    assert bad_count == 0


def test_sequences_are_judged_by_their_own_drafts() -> None:
    """Beside one whose drafts are wrong another one drafts, if that costs the first little."""
    policy = policy_of(7, 0.1)
    good = learnt(policy, [True] * 40)
    bad = learnt(policy, [False] * 40)
    [bad_count, good_count] = policy.plan([bad, good], [7, 7])
    assert bad_count == 0
    assert good_count > 0


def test_a_full_batch_drafts_nothing() -> None:
    """Where a forward of more rows costs as much more, even drafts that are right gain nothing."""
    policy = policy_of(7, HALF)
    batch = [learnt(policy, [True] * 40) for _ in range(16)]
    assert policy.plan(batch, [7] * 16) == [0] * 16
    assert policy.plan([], []) == []


def test_new_sequences_begin_with_what_the_model_has_shown() -> None:
    policy = policy_of(7, HALF)
    assert policy.plan([sequence()], [7]) != [0]
    learnt(policy, [False] * 200)
    assert policy.plan([sequence()], [7]) == [0]
    learnt(policy, [True] * 200)
    assert policy.plan([sequence()], [7]) != [0]


def test_a_sequence_without_drafts_tries_one_again() -> None:
    """A text may become easier, which only a draft can show."""
    policy = policy_of(7, HALF)
    drafting = learnt(policy, [False] * 40)
    counts = [policy.plan([drafting], [7])[0] for _ in range(200)]
    assert set(counts) == {0, 1}
    assert 2 <= sum(counts) <= 4

    for _ in range(20):
        policy.note(drafting, num_drafts=1, num_accepted=1)
    assert policy.plan([drafting], [7])[0] > 1


def test_after_a_failure_there_are_no_drafts_for_a_while() -> None:
    policy = policy_of(7, HALF)
    drafting = learnt(policy, [True] * 40)
    policy.pause()
    counts = [policy.plan([drafting], [7])[0] for _ in range(300)]
    assert counts[:200] == [0] * 200
    assert counts[-1] > 0


def planned(
    policy: DraftPolicy, num_steps: int, cost: float, disturbed: Collection[int] = ()
) -> list[int]:
    """Return the drafts of steps of one sequence, whose drafts are right and take `cost` forwards.

    The steps of the numbers `disturbed` take a hundred times as long.
    """
    drafting = learnt(policy, [True] * 40)
    counts = []
    for number in range(num_steps):
        [count] = policy.plan([drafting], [7])
        forwards = cost_of_rows(1 + count) + cost * cost_of_drafts((count,))
        policy.note_step([count], 0.01 * forwards * (100 if number in disturbed else 1))
        counts.append(count)
    return counts


def test_a_draft_costs_what_steps_take() -> None:
    """A network that is small takes as long as calling it, also for a part of its passes."""
    policy = policy_of(7, HALF)
    dear = planned(policy, 600, cost=1.0)
    assert dear[0] > 0
    assert set(dear[-300:]) <= {0, 1}
    assert 1 <= sum(dear[-300:]) <= 5

    cheap = planned(policy, 3000, cost=0.2)
    assert set(cheap[-1000:]) == {0, 5}
    assert 0.95 < sum(count > 0 for count in cheap[-1000:]) / 1000 < 1


def test_a_step_that_is_disturbed_changes_little() -> None:
    policy = policy_of(7, HALF)
    before = planned(policy, 100, cost=HALF)
    # The second of them is without drafts.
    after = planned(policy, 200, cost=HALF, disturbed={10, 36})
    assert after[10] > 0
    assert after[36] == 0
    assert before[-1] > 0
    assert after.count(0) <= 6


def test_costs_are_those_of_steps_that_only_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[list[int]] = []
    monkeypatch.setattr(
        DraftPolicy, "note_step", lambda self, counts, seconds: noted.append(list(counts))
    )
    ghost = Ghost(num_pages=40, max_drafts=7)
    engine = Engine(ghost, lambda emissions: None)
    run_all(engine, [generate("a", (1, 2, 3), 9)])
    # All but the prompt's.
    assert len(noted) == len(ghost.steps) - 1
    assert sum(count for [count] in noted) == ghost.num_drafts > 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 7)), min_size=1, max_size=6),
    st.sampled_from([0.1, 0.375, 0.5, 0.9]),
)
def test_counts_have_room_and_gain(rows: list[tuple[int, int]], cost: float) -> None:
    """No sequence gets more than it has room for, and one alone gets the best number of all."""
    percents = tuple(percent for percent, _ in rows)
    rooms = tuple(room for _, room in rows)

    counts = best_counts(percents, rooms, cost)

    assert all(0 <= count <= room for count, room in zip(counts, rooms, strict=True))
    assert not any(counts) or gain(counts, percents, cost) > 1
    [alone] = best_counts(percents[:1], rooms[:1], cost)
    gains = [gain((count,), percents[:1], cost) for count in range(rooms[0] + 1)]
    assert gains[alone] == max(gains) or (alone == 0 and max(gains) <= 1.1)


def test_a_gain_is_tokens_by_cost() -> None:
    """Four drafts at half a forward each, nine of ten right, and a forward of five rows."""
    tokens = 1 + 0.9 + 0.9**2 + 0.9**3 + 0.9**4
    assert gain((4,), (90,), HALF) == pytest.approx(tokens / (4 * HALF + cost_of_rows(5)))
    assert gain((0,), (90,), HALF) == 1


class Eager(DraftPolicy):
    """A policy that drafts whatever has room."""

    def plan(self, sequences: Sequence[TokenSequence], rooms: Sequence[int]) -> list[int]:
        return [min(room, 7) for room in rooms]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "DraftPolicy", Eager)


def generate(key: str, prompt: tuple[int, ...], max_tokens: int, n: int = 1) -> SequenceWork:
    return SequenceWork(key, Encoded(prompt, max_tokens), Sampling(max_tokens, seed=1, n=n))


def run_all(engine: Engine, works: Sequence[SequenceWork]) -> None:
    for work in works:
        engine.submit(work)
    while engine.has_work:
        engine.step()


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(("percent", "num_steps"), [(100, 5), (0, 33)])
def test_right_drafts_save_steps(percent: int, num_steps: int) -> None:
    """The prompt's step gives one token, and each other one up to eight."""
    ghost = Ghost(num_pages=40, max_drafts=7, draft_percent=percent)
    emissions: list[Emission] = []
    engine = Engine(ghost, emissions.extend)

    run_all(engine, [generate("a", (1, 2, 3), 33)])

    assert [emission.ids[0] for emission in emissions] == answer((1, 2, 3), 33, 1)
    assert len(ghost.steps) == num_steps
    assert engine.stats.num_tokens == 33
    assert engine.stats.num_drafted == ghost.num_drafts
    assert engine.stats.num_accepted == (28 if percent else 0)
    assert engine.stats.num_prompt_tokens == 3


@pytest.mark.usefixtures("eager")
def test_what_is_verified_behind_an_end_is_dropped() -> None:
    ghost = Ghost(num_pages=40, max_drafts=7)
    tokens = answer((1, 2), 12, 1)
    end = tokens[5]
    ghost.eos_ids = frozenset({end})
    emissions: list[Emission] = []
    engine = Engine(ghost, emissions.extend)

    run_all(engine, [generate("a", (1, 2), 12)])

    said = [token for emission in emissions for token in emission.ids]
    assert said == tokens[: tokens.index(end) + 1]
    assert engine.stats.num_tokens == len(said)
    ended = emissions[-1].ended
    assert isinstance(ended, Done)
    assert ended.finish_reason == "stop"
    assert ended.num_completion_tokens == len(said)
    assert not any(emission.ended for emission in emissions[:-1])


@pytest.mark.usefixtures("eager")
def test_drafts_take_no_page_that_another_needs() -> None:
    """In a store that just holds two sequences nobody is paused, and both draft."""
    ghost = Ghost(num_pages=12, max_drafts=7, draft_percent=50, reuse="none", step_tokens=64)
    engine = Engine(ghost, lambda emissions: None)

    run_all(engine, [generate("a", (1,) * 8, 17), generate("b", (2,) * 8, 17)])

    assert engine.load.num_preempted == 0
    assert ghost.num_drafts > 0
    assert ghost.num_faults == 0


@pytest.mark.usefixtures("eager")
def test_drafts_get_the_pages_that_are_free() -> None:
    """The first sequence takes the last page, and the other one fills the page that it has."""
    ghost = Ghost(num_pages=5, page_size=4, max_drafts=7, step_tokens=64, reuse="none")
    planning = scheduler.Scheduler(ghost.spec)
    for key in ("a", "b"):
        planning.add(TokenSequence(key, Encoded((1, 2, 3, 4), 12), Sampling(12, seed=1)))
    for part in planning.plan():
        planning.commit(part)
        part.sequence.output_ids.append(9)

    parts = planning.plan()

    assert [part.max_drafts for part in parts] == [7, 3]
    assert [len(part.sequence.pages) for part in parts] == [3, 2]
    for part in parts:
        planning.commit(part, num_drafts=part.max_drafts)
    assert [len(part.sequence.pages) for part in parts] == [2, 2]


class Failing(Ghost):
    """A ghost whose steps with drafts fail."""

    def __init__(self, error: Exception) -> None:
        super().__init__(num_pages=40, max_drafts=7)
        self._error = error
        self.num_failures = 0

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        if any(part.max_drafts for part in slices):
            self.num_failures += 1
            raise self._error
        return super().step(slices)


@pytest.mark.parametrize("error", [RuntimeError("broken"), OutOfMemory("none")])
def test_a_failing_draft_fails_no_job(error: Exception) -> None:
    """The step is repeated without drafts, and they pause."""
    ghost = Failing(error)
    emissions: list[Emission] = []

    run_all(Engine(ghost, emissions.extend), [generate("a", (1,), 40), generate("b", (2,), 40)])

    for key, prompt in (("a", (1,)), ("b", (2,))):
        ids = [emission.ids[0] for emission in emissions if emission.key == key]
        assert ids == answer(prompt, 40, 1)
    assert ghost.num_failures == 1


@pytest.mark.parametrize(
    ("num_passes", "passes"),
    [
        (1, [[2], []]),
        (2, [[2], [2]]),
        (3, [[1, 2], [2]]),
        (6, [[0, 1, 2], [0, 1, 2]]),
    ],
)
def test_a_draft_computes_the_last_passes_of_a_cycle(
    num_passes: int, passes: list[list[int]]
) -> None:
    shape = HrmTextShape(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_heads=1,
        head_dim=8,
        num_layers=1,
        h_cycles=2,
        l_cycles=3,
        embedding_scale=1.0,
        max_positions=8,
    )
    found: list[list[int]] = [[], []]
    for one in passes_of(shape, num_passes):
        h_cycle, number = divmod(one.first_slot // shape.num_layers, shape.l_cycles + 1)
        assert one.is_high == (number == shape.l_cycles)
        if not one.is_high:
            found[h_cycle].append(number)
    assert found == passes


def test_the_shipped_model_drafts_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of five drafts of a trained network are right, by half of its passes."""
    if library() is None:
        pytest.skip("drafts need the kernels in C")
    # It is so small that drafts soon turn out not to pay.
    monkeypatch.setattr(DraftPolicy, "note_step", lambda self, counts, seconds: None)
    runner = hrm_text.load(options_for(DEFAULT_MODEL, max_batch=1))
    engine = Engine(runner, lambda emissions: None)
    sampling = Sampling(96, seed=0, temperature=0.0)
    works = []
    for number, problem in enumerate(held_out("maths", "equation", 4)):
        encoded = runner.encode(Generate(problem.prompt, sampling))
        works.append(SequenceWork(str(number), encoded, sampling))

    run_all(engine, works)

    assert runner.spec.draft_cost == 3 / 6
    assert engine.stats.num_drafted > engine.stats.num_tokens / 2
    assert engine.stats.num_accepted > 0.75 * engine.stats.num_drafted


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drafting")
    write_tiny(path)
    return path


def drafts_by_all(runner: PagedRunner) -> None:
    """Draft by the whole network, so that every draft is right."""
    runner.net.draft = Draft(runner.net.hidden, cost=1.0, max_tokens=7)


def drafts_by_part(runner: PagedRunner) -> None:
    """Leave the draft as it is. The weights are random, so most drafts are wrong."""


def drafts_no_numbers(runner: PagedRunner) -> None:
    """Draft by states that are not numbers, and store such keys and values."""

    def hidden(ids: Tensor, plan: AttentionPlan, store: KVStore | None) -> Tensor:
        states = runner.net.hidden(ids, plan, store)
        assert store is not None
        store.keys.flatten(1, 2)[:, plan.rows] = torch.nan
        store.values.flatten(1, 2)[:, plan.rows] = torch.nan
        return states * torch.nan

    runner.net.draft = Draft(hidden, cost=1.0, max_tokens=7)


@pytest.fixture(
    scope="module",
    params=[
        (drafts_by_all, {}),
        (drafts_by_part, {}),
        (drafts_no_numbers, {}),
        (drafts_by_part, {"dtype": "bfloat16"}),
        (drafts_by_part, {"quantize": "int8"}),
        (drafts_by_part, {"kv_dtype": "bfloat16"}),
        (drafts_by_all, {"kv_dtype": "int8", "quantize": "int8"}),
    ],
    ids=lambda param: " ".join([param[0].__name__, *param[1].values()]),
)
def runner(model: Path, request: pytest.FixtureRequest) -> PagedRunner:
    if library() is None:
        pytest.skip("drafts need the kernels in C")
    change, precision = request.param
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(linear, "MIN_INT8_WEIGHTS", 0)
        loaded = hrm_text.load(options_for(model, max_batch=4, page_size=4, **precision))
    assert loaded.spec.max_drafts == 7
    change(loaded)
    return loaded


@pytest.fixture(scope="module")
def plain(runner: PagedRunner) -> list[list[Emission]]:
    """Return the emissions of each request without drafts."""
    return answers(runner, max_drafts=0)


SAMPLINGS = [
    Sampling(12, seed=0, temperature=0.0, logprobs=3),
    Sampling(12, seed=1, temperature=1.0, logprobs=0, n=3),
    Sampling(12, seed=2, temperature=0.8, top_k=20, top_p=0.9, min_tokens=6),
    Sampling(14, seed=3, temperature=0.7, presence_penalty=1.5, frequency_penalty=0.5),
    Sampling(14, seed=4, temperature=0.0, repetition_penalty=1.7, logit_bias=((7, 3.0),)),
    Sampling(20, seed=5, temperature=1.2, stop=("e", "\n"), ignore_eos=True, n=2),
    Sampling(9, seed=6, temperature=1.0, min_p=0.05, stop_ids=(40, 41, 42, 43, 44)),
    Sampling(1, seed=7, temperature=0.5),
]


@pytest.fixture(autouse=True)
def no_step_fails(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """Check that no step has failed, except where that is the test.

    A step with drafts that fails is repeated without them, which would hide its fault.
    """
    yield
    if "error" not in request.fixturenames:
        assert "step failed" not in caplog.text


def answers(
    runner: PagedRunner,
    *,
    max_drafts: int,
    num_pages: int | None = None,
    replayed: Sequence[tuple[tuple[int, ...], ...]] = (),
    cancelled: int | None = None,
) -> list[list[Emission]]:
    """Return the emissions of each request. They arrive two steps after each other."""
    spec = runner.spec
    runner.spec = replace(spec, max_drafts=max_drafts, num_pages=num_pages or spec.num_pages)
    emissions: list[Emission] = []
    engine = Engine(runner, emissions.extend)
    runner.spec = spec
    number = 0
    num_steps = 0
    while number < len(SAMPLINGS) or engine.has_work:
        if number < len(SAMPLINGS) and num_steps % 2 == 0:
            sampling = SAMPLINGS[number]
            encoded = runner.encode(Generate(PROMPTS[number % len(PROMPTS)], sampling))
            given = replayed[number] if replayed else ()
            engine.submit(SequenceWork(str(number), encoded, sampling, given))
            number += 1
        if num_steps == 5 and cancelled is not None:
            engine.abort(str(cancelled))
        engine.step()
        num_steps += 1

    cache = engine.scheduler.cache
    assert cache is not None
    assert cache.pages.num_free + cache.tree.num_pages == cache.pages.num_pages
    assert (engine.stats.num_drafted > 0) == (max_drafts > 0)

    by_request: list[list[Emission]] = [[] for _ in SAMPLINGS]
    for emission in emissions:
        assert not isinstance(emission.ended, Failed), emission
        by_request[int(emission.key)].append(emission)
    # Choices may be ahead of each other, but the order in each of them is the same.
    for said in by_request:
        said.sort(key=lambda emission: emission.choice)
    return by_request


def texts(by_request: list[list[Emission]]) -> list[list[tuple[object, ...]]]:
    """Return what was said, token by token with texts and log-probabilities, without ends."""
    said = []
    for emissions in by_request:
        said.append(
            [
                (one.choice, one.ids, one.text, one.logprobs, one.finish_reason)
                for one in emissions
                if one.ids
            ]
        )
    return said


def ends(by_request: list[list[Emission]]) -> list[Done | Failed | None]:
    return [
        next((one.ended for one in emissions if one.ended is not None), None)
        for emissions in by_request
    ]


@pytest.mark.usefixtures("eager")
def test_answers_are_the_same_with_drafts(runner: PagedRunner, plain: list[list[Emission]]) -> None:
    """Tokens, texts, log-probabilities and ends are the same, to the last bit."""
    for max_drafts in (3, 7):
        drafted = answers(runner, max_drafts=max_drafts)
        assert texts(drafted) == texts(plain)
        assert ends(drafted) == ends(plain)


@pytest.mark.usefixtures("eager")
def test_answers_are_the_same_in_a_store_that_is_short(
    runner: PagedRunner, plain: list[list[Emission]]
) -> None:
    """Sequences pause, start again and share prompts, and their drafts get few pages."""
    drafted = answers(runner, max_drafts=7, num_pages=24)
    assert [one[:3] for said in texts(drafted) for one in said] == [
        one[:3] for said in texts(plain) for one in said
    ]


@pytest.mark.usefixtures("eager")
def test_a_cancelled_request_leaves_its_mates_alone(
    runner: PagedRunner, plain: list[list[Emission]]
) -> None:
    drafted = answers(runner, max_drafts=7, cancelled=1)
    assert texts(drafted)[2:] == texts(plain)[2:]
    assert texts(drafted)[0] == texts(plain)[0]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("cut", [1, 2, 5, 8, 11])
def test_a_job_that_is_taken_over_goes_on_with_drafts(
    runner: PagedRunner, plain: list[list[Emission]], cut: int
) -> None:
    """Tokens that an earlier worker has logged and those that follow are one answer."""
    logged = []
    for number, said in enumerate(plain):
        ids: list[tuple[int, ...]] = []
        for choice in range(SAMPLINGS[number].n):
            whole = [one.ids[0] for one in said if one.choice == choice and one.ids]
            ids.append(tuple(whole[:cut]))
        logged.append(tuple(ids))

    drafted = answers(runner, max_drafts=7, replayed=logged)

    for number, said in enumerate(plain):
        for choice in range(SAMPLINGS[number].n):
            whole = [one.ids[0] for one in said if one.choice == choice and one.ids]
            rest = [one.ids[0] for one in drafted[number] if one.choice == choice and one.ids]
            assert [*logged[number][choice], *rest] == whole


@pytest.mark.usefixtures("eager")
def test_a_repeated_prompt_is_shared_after_drafts(runner: PagedRunner) -> None:
    """The keys that drafts have written behind a prompt are no part of it."""
    sampling = SAMPLINGS[0]
    encoded = runner.encode(Generate(PROMPTS[2], sampling))
    emissions: list[Emission] = []
    engine = Engine(runner, emissions.extend)
    for key in ("first", "second", "third"):
        run_all(engine, [SequenceWork(key, encoded, sampling)])

    by_key: dict[str, list[tuple[int, ...]]] = {}
    for emission in emissions:
        by_key.setdefault(emission.key, []).append(emission.ids)
    assert by_key["first"] == by_key["second"] == by_key["third"]
    end = emissions[-1].ended
    assert isinstance(end, Done)
    assert end.num_cached_tokens == len(encoded.prompt_ids) - 1


@pytest.fixture
def broken_token(model: Path) -> tuple[PagedRunner, list[int], int]:
    """Return a model, its greedy answer to the first prompt, and the token of that which breaks it.

    The states of this token are not numbers.
    """
    if library() is None:
        pytest.skip("drafts need the kernels in C")
    loaded = hrm_text.load(options_for(model, max_batch=4, page_size=4))
    drafts_by_all(loaded)
    engine_said: list[Emission] = []
    sampling = Sampling(12, seed=0, temperature=0.0)
    task = Generate(PROMPTS[0], sampling)
    work = SequenceWork("a", loaded.encode(task), sampling)
    run_all(Engine(loaded, engine_said.extend), [work])
    ids = [emission.ids[0] for emission in engine_said]
    token = ids[6]
    assert isinstance(loaded.net, hrm_text.HrmTextNet)
    loaded.net.model.model.embed_tokens.weight[token] = torch.nan
    return loaded, ids[: ids.index(token) + 1], token


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("max_drafts", [0, 7])
def test_what_breaks_behind_right_drafts_fails_as_without_them(
    broken_token: tuple[PagedRunner, list[int], int], max_drafts: int
) -> None:
    """All tokens up to the one that breaks the network are said, and then the job fails."""
    loaded, ids, _ = broken_token
    loaded.spec = replace(loaded.spec, max_drafts=max_drafts)
    sampling = Sampling(12, seed=0, temperature=0.0)
    encoded = loaded.encode(Generate(PROMPTS[0], sampling))
    emissions: list[Emission] = []

    run_all(Engine(loaded, emissions.extend), [SequenceWork("a", encoded, sampling)])

    assert [emission.ids[0] for emission in emissions if emission.ids] == ids
    end = emissions[-1].ended
    assert isinstance(end, Failed)
    assert "not finite" in end.message
    assert loaded.store.keys.isfinite().all()
    assert loaded.store.values.isfinite().all()


@pytest.mark.usefixtures("eager")
def test_a_wrong_draft_that_breaks_the_network_fails_nothing(
    broken_token: tuple[PagedRunner, list[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is wrong, and what it has stored is cleared."""
    loaded, ids, token = broken_token
    monkeypatch.setattr(paged, "draw", lambda logits, *_: [token] * len(logits))
    sampling = Sampling(len(ids) - 1, seed=0, temperature=0.0)
    encoded = loaded.encode(Generate(PROMPTS[0], sampling))
    emissions: list[Emission] = []
    engine = Engine(loaded, emissions.extend)

    engine.submit(SequenceWork("a", encoded, sampling))
    while engine.has_work:
        engine.step()
        assert loaded.store.keys.isfinite().all()
        assert loaded.store.values.isfinite().all()

    assert engine.stats.num_drafted > 0
    assert [emission.ids[0] for emission in emissions] == ids[:-1]
    assert isinstance(emissions[-1].ended, Done)


@pytest.mark.parametrize(
    "values",
    [
        {"draft_tokens": 0},
        {"flash_attention": False},
        {"draft_cycles": 6},
        {"dtype": "float16"},
    ],
)
def test_where_rows_are_not_apart_nothing_is_drafted(
    model: Path, values: dict[str, object]
) -> None:
    """Without the kernels, or with as many cycles as all, a model does not draft."""
    loaded = hrm_text.load(options_for(model, **values))
    assert loaded.spec.max_drafts == 0


def test_a_network_whose_rows_depend_on_others_does_not_draft(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial finds out that a forward of several tokens has other bits."""
    if library() is None:
        pytest.skip("drafts need the kernels in C")
    hidden = hrm_text.HrmTextNet.hidden

    def coupled(net: hrm_text.HrmTextNet, ids: Tensor, *given: object) -> Tensor:
        return hidden(net, ids, *given) * (1 + 1e-6 * len(ids))

    monkeypatch.setattr(hrm_text.HrmTextNet, "hidden", coupled)
    assert hrm_text.load(options_for(model)).spec.max_drafts == 0
