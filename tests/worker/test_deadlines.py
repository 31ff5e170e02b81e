"""Deadlines in the engine: at the next step boundary a late answer ends, anything else fails.

An answer that ends keeps the tokens it has.
"""

import math

from redis.asyncio import Redis

from shared.messages import Done, Event, Failed, Sampling, Tokens
from tests.fixtures.desk import Desk
from tests.fixtures.polling import until
from tests.fixtures.worker.ghost import Ghost, answer
from tests.fixtures.worker.services import Slow, end_of, log_fields_of, long_task, service, serving
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Encoded
from worker.host.outbox import add_emission

PROMPT = (1, 2, 2, 1)
SEED = 5


class Clock:
    """A clock that moves by one second a step."""

    def __init__(self, ghost: Ghost) -> None:
        self._ghost = ghost

    def __call__(self) -> float:
        return float(len(self._ghost.steps))


def run(ghost: Ghost, *works: SequenceWork) -> list[Emission]:
    emissions: list[Emission] = []
    engine = Engine(ghost, emissions.extend, now=Clock(ghost))
    for work in works:
        engine.submit(work)
    while engine.has_work:
        engine.step()

    cache = engine.scheduler.cache
    assert cache is not None
    assert cache.pages.num_free + cache.tree.num_pages == ghost.spec.num_pages
    return emissions


def generate(
    key: str, *, max_tokens: int = 20, n: int = 1, deadline_s: float = math.inf, stop: str = ""
) -> SequenceWork:
    stops = (stop,) if stop else ()
    sampling = Sampling(max_tokens, seed=SEED, n=n, stop=stops)
    return SequenceWork(key, Encoded(PROMPT, max_tokens), sampling, deadline_s=deadline_s)


def emissions_of(emissions: list[Emission], key: str) -> list[Emission]:
    return [emission for emission in emissions if emission.key == key]


def ids_of(emissions: list[Emission]) -> list[int]:
    ids: list[int] = []
    for emission in emissions:
        ids += emission.ids
    return ids


def test_an_answer_ends_with_what_it_has() -> None:
    """After five steps an answer has five tokens; others go on undisturbed (X8)."""
    emissions = run(Ghost(num_pages=40), generate("late", deadline_s=5.0), generate("free"))

    late = emissions_of(emissions, "late")
    assert ids_of(late) == answer(PROMPT, 5, SEED)
    assert late[-1].ended == Done("deadline", 4, 5)
    assert late[-1].finish_reason == "deadline"
    free = emissions_of(emissions, "free")
    assert ids_of(free) == answer(PROMPT, 20, SEED)


def test_text_that_was_held_back_is_said() -> None:
    """A possible beginning of a stop string is text when nothing more comes."""
    [token] = answer(PROMPT, 1, SEED)

    emissions = run(Ghost(num_pages=40), generate("a", deadline_s=1.0, stop=f"{token} x"))

    assert emissions[-1] == Emission(
        "a", (), f"{token} ", finish_reason="deadline", ended=Done("deadline", 4, 1)
    )


def test_each_choice_ends_for_its_own_reason() -> None:
    """Two of four choices reach their length and two the deadline, with room for two at a time.

    The end of each is emitted.
    """
    ghost = Ghost(num_pages=40, max_batch=2)

    emissions = run(ghost, generate("a", max_tokens=4, n=4, deadline_s=5.0))

    finished = [emission.choice for emission in emissions if emission.finish_reason]
    assert sorted(finished) == [0, 1, 2, 3]
    [done] = [emission.ended for emission in emissions if emission.ended is not None]
    assert isinstance(done, Done)
    assert sorted(done.generated.finish_reasons) == ["deadline", "deadline", "length", "length"]
    assert emissions[-1].ended is done


def test_without_an_answer_it_fails() -> None:
    """A late work without a token of an answer fails.

    It waits for its turn or is in a long prompt. Scoring and embedding fail however far they are.
    """
    long_prompt = (1,) * 100
    prefill = SequenceWork("long", Encoded(long_prompt, 4), Sampling(4, seed=SEED), deadline_s=3.0)
    score = SequenceWork(
        "score", Encoded(PROMPT, continuations=((1, 2),) * 20), None, deadline_s=2.0
    )
    embed = SequenceWork("text", Encoded(long_prompt, is_pooled=True), None, deadline_s=3.0)
    for late in (prefill, score, embed):
        [emission] = run(Ghost(num_pages=60, step_tokens=8), late)
        assert isinstance(emission.ended, Failed)
        assert emission.ended.code == "deadline_exceeded"

    ghost = Ghost(num_pages=60, max_batch=1)
    emissions = run(ghost, generate("busy"), generate("waits", deadline_s=2.0))
    failed = [emission.key for emission in emissions if isinstance(emission.ended, Failed)]
    assert failed == ["waits"]


def test_an_end_without_text_is_still_told() -> None:
    """The end of a choice is an event even where it brings no text."""
    news: list[Event] = []
    add_emission(news, Emission("a", choice=1, finish_reason="deadline"))
    assert news == [Tokens((), "", 1, finish_reason="deadline")]


async def test_a_jobs_own_deadline_holds_in_the_worker(redis: Redis) -> None:
    """A job whose deadline passes ends with the tokens that it has in its log."""
    slow = Slow(RunnerOptions("echo", max_batch=4))
    slow.stepping_s = 0.02
    worker = service(redis, lease_s=30)
    async with serving(worker, slow):
        await until(lambda: worker.not_ready() is None, "it is ready")
        [job] = await Desk(redis).submit(long_task(4000), deadline_s=6)
        end = await end_of(redis, job)

    assert isinstance(end, Done)
    assert end.finish_reason == "deadline"
    # One token a step, and one for the step that the deadline fell into.
    assert 0 < end.num_completion_tokens <= 6 / slow.stepping_s + 1
    text, _ = await log_fields_of(redis, job)
    assert len(text) == end.num_completion_tokens
