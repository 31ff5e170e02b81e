"""Deadlines in the engine: at the next step boundary a late answer ends with what it has, anything
else fails."""

import math

from redis.asyncio import Redis

from shared.messages import Done, Failed, Sampling, Tokens
from tests.fixtures.desk import Desk
from tests.fixtures.worker.ghost import Ghost, answer
from tests.fixtures.worker.services import Slow, end_of, log_fields_of, long_task, service, serving
from worker.engine.engine import Engine
from worker.engine.noise import fold
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Encoded
from worker.host.outbox import _add

PROMPT = (1, 2, 2, 1)


class Clock:
    """Moves by one second a step."""

    def __init__(self, ghost: Ghost) -> None:
        self._ghost = ghost

    def __call__(self) -> float:
        return float(len(self._ghost.steps))


def run(ghost: Ghost, *works: SequenceWork) -> list[Emission]:
    said: list[Emission] = []
    engine = Engine(ghost, said.extend, now=Clock(ghost))
    for work in works:
        engine.submit(work)
    while engine.has_work:
        engine.step()
    cache = engine._scheduler._cache
    assert cache is not None
    assert cache.pages.num_free + cache.tree.num_pages == ghost.spec.num_pages
    return said


def generate(
    key: str, *, max_tokens: int = 20, n: int = 1, deadline_s: float = math.inf, stop: str = ""
) -> SequenceWork:
    stops = (stop,) if stop else ()
    return SequenceWork(
        key,
        Encoded(PROMPT, max_tokens),
        Sampling(max_tokens, 5, n=n, stop=stops),
        deadline_s=deadline_s,
    )


def test_an_answer_ends_with_what_it_has() -> None:
    """X8: after five steps five tokens are there; others go on undisturbed."""
    said = run(Ghost(num_pages=40), generate("late", deadline_s=5.0), generate("free"))
    late = [item for item in said if item.key == "late"]
    assert [token for item in late for token in item.ids] == answer(PROMPT, 5, fold(5, 0))
    assert late[-1].ended == Done("deadline", 4, 5)
    assert late[-1].finish_reason == "deadline"
    free = [item for item in said if item.key == "free"]
    assert [token for item in free for token in item.ids] == answer(PROMPT, 20, fold(5, 0))


def test_text_that_was_held_back_is_said() -> None:
    """A possible beginning of a stop string is text when nothing more comes."""
    first = str(answer(PROMPT, 1, fold(5, 0))[0])
    [*_, last] = run(Ghost(num_pages=40), generate("a", deadline_s=1.0, stop=f"{first} x"))
    assert last == Emission(
        "a", (), f"{first} ", finish_reason="deadline", ended=Done("deadline", 4, 1)
    )


def test_each_choice_ends_for_its_own_reason() -> None:
    """Of four choices on two places, two have ended by themselves; of the others each is told."""
    said = run(Ghost(num_pages=40, max_batch=2), generate("a", max_tokens=4, n=4, deadline_s=5.0))
    [done] = [item.ended for item in said if item.ended is not None]
    assert isinstance(done, Done)
    assert sorted(done.generated.finish_reasons) == ["deadline", "deadline", "length", "length"]
    assert sorted(item.choice for item in said if item.finish_reason) == [0, 1, 2, 3]
    assert said[-1].ended is done


def test_without_an_answer_it_fails() -> None:
    """Nothing said yet, for want of a place or in a long prompt; and scoring or reading, however
    far."""
    long = SequenceWork("long", Encoded((1,) * 100, 4), Sampling(4, 5), deadline_s=3.0)
    score = SequenceWork(
        "score", Encoded(PROMPT, continuations=((1, 2),) * 20), None, deadline_s=2.0
    )
    text = SequenceWork("text", Encoded((1,) * 100, is_pooled=True), None, deadline_s=3.0)
    for late in (long, score, text):
        [end] = run(Ghost(num_pages=60, step_tokens=8), late)
        assert isinstance(end.ended, Failed)
        assert end.ended.code == "deadline_exceeded"
    ends = run(
        Ghost(num_pages=60, max_batch=1), generate("busy"), generate("waits", deadline_s=2.0)
    )
    assert [item.key for item in ends if isinstance(item.ended, Failed)] == ["waits"]


def test_an_end_without_text_is_still_told() -> None:
    news: list[object] = []
    _add(news, Emission("a", choice=1, finish_reason="deadline"))  # type: ignore[arg-type]
    assert news == [Tokens((), "", 1, finish_reason="deadline")]


async def test_a_jobs_own_deadline_holds_in_the_worker(redis: Redis) -> None:
    slow = Slow(RunnerOptions("echo", max_batch=4))
    slow.stepping_s = 0.02
    async with serving(service(redis, lease_s=30), slow):
        [job] = await Desk(redis).submit(long_task(4000), deadline_s=2)
        end = await end_of(redis, job)
    assert isinstance(end, Done)
    assert end.finish_reason == "deadline"
    assert 0 < end.num_completion_tokens <= 2 / slow.stepping_s + 1
    assert len((await log_fields_of(redis, job))[0]) == end.num_completion_tokens
