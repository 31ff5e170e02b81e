"""Reading a prompt, token by token, against transformers' own forward over the whole of it; and how
it is told."""

from pathlib import Path

import pytest
import torch
from redis.asyncio import Redis
from torch import Tensor

from scripts.train.train_sample import byte_tokenizer
from shared.errors import ContextExceeded
from shared.messages import Read, Score, TokenLogprob, Tokens
from tests.fixtures.e2e.inside import fleet_inside
from tests.fixtures.scored_models import WINDOW, Model, ids, load, tiny
from tests.fixtures.tiny_hrm_text import write_tiny
from tests.fixtures.worker.act_fixtures import Net, write_bundle
from tests.fixtures.worker.stepping import run, score_all
from worker.engine.request import Emission
from worker.engine.runner import Runner, RunnerOptions
from worker.runners.echo import Echo
from worker.runners.registry import load_runner

__all__ = ["tiny"]
EOQ = 2


def read_all(runner: Runner, tasks: list[Read]) -> list[Emission]:
    """What is said of each prompt, the prompts read together: one emission, which is its end
    too."""
    emissions = run(runner, tasks, [[] for _ in tasks])
    assert sorted(item.key for item in emissions) == [str(number) for number in range(len(tasks))]
    return sorted(emissions, key=lambda item: int(item.key))


def logits_of(tiny: Model, prompt: tuple[int, ...], num_seen: int) -> Tensor:
    """[tokens, vocab] of one unbatched forward; a prefix-LM is told what it sees at once."""
    marks = {}
    if "HrmText" in type(tiny[1]).__name__:
        marks = {"token_type_ids": (torch.arange(len(prompt)) < num_seen).long()[None]}
    with torch.no_grad():
        table: Tensor = tiny[1](input_ids=torch.tensor([prompt]), use_cache=False, **marks).logits[
            0
        ]
    return table.double().log_softmax(-1)


def test_every_token_has_the_probability_that_the_network_gives_it(tiny: Model) -> None:
    """B53: the first token, or what a prefix-LM sees at once, is predicted by nothing."""
    is_prefix = "HrmText" in type(tiny[1]).__name__
    prompts = [ids(length, length) for length in (1, 2, 17, 60, WINDOW)]
    if is_prefix:
        prompts = [
            (*prompt[:5], EOQ, *prompt[6:]) if len(prompt) > 6 else (EOQ,) for prompt in prompts
        ]
    runner = load(tiny[0], max_batch=4, step_tokens=24)
    for prompt, said in zip(
        prompts, read_all(runner, [Read(prompt, 3) for prompt in prompts]), strict=True
    ):
        num_seen = prompt.index(EOQ) + 1 if is_prefix else 1
        assert said.ids == prompt and len(said.logprobs) == len(prompt)
        assert [item.logprob for item in said.logprobs[:num_seen]] == [None] * num_seen
        table = logits_of(tiny, prompt, num_seen)
        for place, item in enumerate(said.logprobs[num_seen:], start=num_seen):
            row = table[place - 1]
            assert item.logprob == pytest.approx(float(row[prompt[place]]), abs=2e-4)
            best = row.topk(3)
            assert [value for _, _, value in item.top] == pytest.approx(
                best.values.tolist(), abs=2e-4
            )
            assert all(
                float(row[token]) == pytest.approx(value, abs=2e-4) for token, _, value in item.top
            )


def test_a_prompt_without_an_end_mark_is_seen_at_once(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    [said] = read_all(load(tmp_path), [Read(ids(9, 1), 2)])
    assert [item.logprob for item in said.logprobs] == [None] * 9


def test_more_than_the_context_window_is_refused(tiny: Model) -> None:
    with pytest.raises(ContextExceeded, match=f"{WINDOW} tokens; the prompt has {WINDOW + 1}"):
        load(tiny[0]).encode(Read(ids(WINDOW + 1, 1)))


@pytest.mark.parametrize("causal", [False, True])
def test_a_brain_reads_as_it_scores(tmp_path: Path, causal: bool) -> None:
    """P8: a token's log-probability is that of the strict score of it alone, behind the tokens
    before it."""
    write_bundle(tmp_path, Net(vocab=264, causal=causal), tokenizer="tokenizer")
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    runner = load_runner("auto", RunnerOptions(path=str(tmp_path), max_batch=4))
    prompt = ids(12, 3)
    [said] = read_all(runner, [Read(prompt)])
    scores = score_all(
        runner, [Score(prompt[:place], (prompt[place : place + 1],)) for place in range(1, 12)]
    )
    found = [item.logprob for item in said.logprobs]
    assert found == [None, *(pytest.approx(score.log_likelihood, abs=1e-5) for (score,) in scores)]


def test_a_prompt_read_in_company_is_read_alike(tiny: Model) -> None:
    """T5: several prompts of one step, of which some ask for more of the likeliest tokens than
    others."""
    runner = load(tiny[0], max_batch=4)
    tasks = [
        Read((*ids(4, 5), EOQ, *ids(20, seed)), num_top)
        for seed, num_top in ((1, 0), (2, 5), (3, 1))
    ]
    together = read_all(runner, tasks)
    alone = [read_all(runner, [task])[0] for task in tasks]
    for task, one, other in zip(tasks, together, alone, strict=True):
        assert {len(item.top) for item in one.logprobs if item.logprob is not None} == {
            task.num_top
        }
        assert [item.token for item in one.logprobs] == [item.token for item in other.logprobs]
        pairs = zip(one.logprobs, other.logprobs, strict=True)
        assert all(
            a.logprob == b.logprob or a.logprob == pytest.approx(b.logprob, abs=1e-5)
            for a, b in pairs
        )


async def test_echo_says_the_prompt_first(redis: Redis) -> None:
    """B24, B53: through HTTP and Redis, with and without log-probabilities, as text and as ids."""
    async with fleet_inside(
        redis, {"echo": Echo(RunnerOptions("echo", name="echo", max_batch=4))}
    ) as client:

        async def ask(**body: object) -> dict[str, object]:
            answer = await client.post(
                "/v1/completions", json={"max_tokens": 2, "echo": True} | body
            )
            assert answer.status_code == 200, answer.text
            whole: dict[str, object] = answer.json()
            return whole

        plain = await ask(prompt=["abc", [120, 121]])
        assert [choice["text"] for choice in plain["choices"]] == ["abcab", "xyxy"]  # type: ignore[index, attr-defined]
        assert [choice["logprobs"] for choice in plain["choices"]] == [None, None]  # type: ignore[index, attr-defined]
        told = (await ask(prompt="abc", logprobs=1))["choices"][0]  # type: ignore[index]
        assert told["text"] == "abcab"
        assert told["logprobs"]["tokens"] == ["a", "b", "c", "a", "b"]
        assert told["logprobs"]["token_logprobs"] == [None, -1.0, -1.0, 0.0, 0.0]
        assert told["logprobs"]["top_logprobs"][0] is None
        assert told["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]
        alone = await ask(prompt="abc", logprobs=0, max_tokens=0)
        assert alone["choices"][0]["logprobs"]["tokens"] == ["a", "b", "c"]  # type: ignore[index]
        assert alone["choices"][0]["finish_reason"] == "length"  # type: ignore[index]
        assert alone["usage"]["prompt_tokens"] == 3 and alone["usage"]["completion_tokens"] == 0  # type: ignore[index]


def test_it_is_one_event_for_the_log() -> None:
    """A worker that is lost can leave all of it behind or nothing: then another reads it again from
    the start."""
    [said] = read_all(Echo(RunnerOptions("echo", name="echo")), [Read("hi")])
    assert said.ended is not None and said.ended.finish_reason == "read"  # type: ignore[union-attr]
    assert Tokens(said.ids, said.text, logprobs=said.logprobs).logprobs == (
        TokenLogprob(None, "h"),
        TokenLogprob(-1.0, "i"),
    )
