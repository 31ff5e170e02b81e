"""Budgets reserve enough: no tokenizer makes more tokens, and a longer prompt is not computed."""

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings
from redis.asyncio import Redis

from shared.access import Budget
from shared.messages import (
    Chat,
    Done,
    Embed,
    Failed,
    Generate,
    Sampling,
    Score,
    Solve,
    Tokenize,
    Turn,
)
from shared.queue.usage_ledger import UsageLedger
from shared.tasks.token_bounds import most_prompt_tokens, most_tokens
from tests.fixtures.desk import Desk
from tests.fixtures.worker.services import end_of, service, serving
from tests.fixtures.worker.tokenizer_kinds import KINDS, MARKS, tokenizer_of
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Encoded
from worker.runners.echo import Echo

NO_WINDOW = 0
BUDGET = Budget(1_000, "day")


def ask(prompt: str, n: int = 1, **more: object) -> Generate:
    return Generate(prompt, Sampling(max_tokens=9, seed=0, n=n), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("marks", MARKS)
@settings(max_examples=60)
@given(text=st.text(max_size=40))
@example("hello paris   \n\n\t 世界 🌍 ﷺ\u2581")
def test_tokenizers_make_no_more(kind: str, marks: str, text: str) -> None:
    ids = tokenizer_of(kind, marks)(text)["input_ids"]
    assert len(ids) <= most_prompt_tokens(ask(text), NO_WINDOW)
    assert len(ids) <= most_prompt_tokens(Embed(text), NO_WINDOW)


def test_the_window_bounds_what_is_cut_to_it() -> None:
    long = "x" * 5_000
    assert most_prompt_tokens(ask(long), 100) == 100
    assert most_prompt_tokens(ask(long), NO_WINDOW) == 5_008
    assert most_prompt_tokens(ask(long, max_prompt_tokens=50), 100) == 58
    # These are not cut.
    assert most_prompt_tokens(Tokenize(long), 100) == 5_008
    assert most_prompt_tokens(Score(long, ("a", "bc")), 100) == 5_008 + 9 + 10


def test_answers_count_for_each_choice() -> None:
    assert most_tokens(ask("ab", n=3), 10) == 10 + 3 * 9
    assert most_tokens(Embed("ab"), 10) == 10


def test_ids_chats_and_other_tasks() -> None:
    assert most_prompt_tokens(Generate((1, 2, 3), Sampling(9, 0)), NO_WINDOW) == 3 + 8
    turns = (Turn("user", "hé"), Turn("assistant", "ho"))
    assert most_prompt_tokens(Generate(Chat(turns), Sampling(9, 0)), NO_WINDOW) == 512 + 32 + 5
    assert most_prompt_tokens(Solve("1" * 81), NO_WINDOW) >= 81


class LongTemplate(Echo):
    """A model whose template writes more around a text than is expected."""

    def encode(self, task: object) -> Encoded:
        return Encoded(tuple(range(50)), 9)


async def test_a_longer_prompt_is_refused_and_not_computed(redis: Redis) -> None:
    worker = service(redis)
    desk = Desk(redis)
    async with serving(worker, LongTemplate(RunnerOptions("echo"))):
        [job] = await desk.submit(ask("ab"), api_key="0a", budget=BUDGET)
        ended = await end_of(redis, job)
        [free] = await desk.submit(ask("ab"), api_key="0b")
        assert isinstance(await end_of(redis, free), Done)
    assert isinstance(ended, Failed)
    assert ended.code == "budget_exceeded"
    assert "50 tokens, and 10 of" in ended.message
    standing = await UsageLedger(desk.broker).standing("0a", BUDGET)
    assert (standing.used, standing.reserved) == (0, 0)
