"""Log-probabilities of a prompt that is read, token by token, and how they reach the client.

The oracle is transformers' own forward over the whole prompt.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from redis.asyncio import Redis
from torch import Tensor

from scripts.train.special_tokens import byte_tokenizer
from shared.errors import ContextExceeded
from shared.messages import Done, Read, Score, TokenLogprob, Tokens
from tests.fixtures.api.frames import frames
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
LATER = {"Prefer": "respond-async"}


def read_all(runner: Runner, tasks: list[Read]) -> list[Emission]:
    """Read the prompts together. Return the one emission of each, which is its end too."""
    by_task: dict[int, Emission] = {}
    for emission in run(runner, tasks, [[]] * len(tasks)):
        number = int(emission.key)
        assert number not in by_task, "a second emission"
        by_task[number] = emission
    assert len(by_task) == len(tasks)
    return [by_task[number] for number in range(len(tasks))]


def logprobs_of(emission: Emission) -> list[float | None]:
    return [report.logprob for report in emission.logprobs]


def is_prefix_lm(tiny: Model) -> bool:
    return "HrmText" in type(tiny[1]).__name__


def logits_of(tiny: Model, prompt: tuple[int, ...], num_seen: int) -> Tensor:
    """Return the log-probabilities [tokens, vocab] of one unbatched forward.

    A prefix-LM sees the first `num_seen` tokens at once.
    """
    _, model = tiny
    marks = {}
    if is_prefix_lm(tiny):
        marks = {"token_type_ids": (torch.arange(len(prompt)) < num_seen).long()[None]}
    with torch.no_grad():
        out = model(input_ids=torch.tensor([prompt]), use_cache=False, **marks)
    logits: Tensor = out.logits[0]
    return logits.double().log_softmax(-1)


def with_end_mark(prompt: tuple[int, ...]) -> tuple[int, ...]:
    """Return a prompt of the same length whose sixth token, or only one, ends the question."""
    if len(prompt) > 6:
        return (*prompt[:5], EOQ, *prompt[6:])
    return (EOQ,)


def test_every_token_has_the_probability_that_the_network_gives_it(tiny: Model) -> None:
    """B53: Every token has the network's log-probability, unless nothing predicts it.

    Nothing predicts the first token, nor those that a prefix-LM sees at once.
    """
    prompts = []
    for length in (1, 2, 17, 60, WINDOW):
        prompt = ids(length, length)
        if is_prefix_lm(tiny):
            prompt = with_end_mark(prompt)
        prompts.append(prompt)
    runner = load(tiny[0], max_batch=4, step_tokens=24)

    emissions = read_all(runner, [Read(prompt, num_top=3) for prompt in prompts])

    for prompt, emission in zip(prompts, emissions, strict=True):
        num_seen = 1
        if is_prefix_lm(tiny):
            num_seen = prompt.index(EOQ) + 1
        assert emission.ids == prompt
        assert len(emission.logprobs) == len(prompt)
        assert logprobs_of(emission)[:num_seen] == [None] * num_seen

        log_probs = logits_of(tiny, prompt, num_seen)
        for position in range(num_seen, len(prompt)):
            # Each row predicts the token behind it.
            check_report(emission.logprobs[position], prompt[position], log_probs[position - 1])


def check_report(report: TokenLogprob, token: int, log_probs: Tensor) -> None:
    """Compare a report with the log-probabilities of the whole vocabulary."""
    assert report.logprob == pytest.approx(float(log_probs[token]), abs=2e-4)
    best = log_probs.topk(3)
    assert len(report.top) == 3
    for rank, (rival, _, value) in enumerate(report.top):
        assert value == pytest.approx(float(best.values[rank]), abs=2e-4)
        # Which of two equal rivals comes first is open, but each has its own value.
        assert float(log_probs[rival]) == pytest.approx(value, abs=2e-4)


def test_a_prompt_without_an_end_mark_is_seen_at_once(tmp_path: Path) -> None:
    """A prefix-LM predicts no token of a prompt that has no end mark."""
    write_tiny(tmp_path)

    [emission] = read_all(load(tmp_path), [Read(ids(9, 1), num_top=2)])

    assert logprobs_of(emission) == [None] * 9


def test_more_than_the_context_window_is_refused(tiny: Model) -> None:
    """A prompt one token longer than the context window is refused."""
    with pytest.raises(ContextExceeded, match=f"{WINDOW} tokens; the prompt has {WINDOW + 1}"):
        load(tiny[0]).encode(Read(ids(WINDOW + 1, 1)))


@pytest.mark.parametrize("causal", [False, True])
def test_a_brain_reads_as_it_scores(tmp_path: Path, causal: bool) -> None:
    """P8: A token's log-probability is the strict score of that token alone, after the tokens
    before it."""
    write_bundle(tmp_path, Net(vocab=264, causal=causal), tokenizer="tokenizer")
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    runner = load_runner("auto", RunnerOptions(path=str(tmp_path), max_batch=4))
    prompt = ids(12, 3)

    [emission] = read_all(runner, [Read(prompt)])

    tasks = []
    for position in range(1, 12):
        token = prompt[position]
        tasks.append(Score(prompt[:position], ((token,),)))
    logprobs = logprobs_of(emission)
    assert logprobs[0] is None
    for logprob, (score,) in zip(logprobs[1:], score_all(runner, tasks), strict=True):
        assert logprob == pytest.approx(score.log_likelihood, abs=1e-5)


def test_a_prompt_read_in_company_is_read_alike(tiny: Model) -> None:
    """T5: A prompt has the same log-probabilities beside others as alone.

    The prompts share a step, and ask for different numbers of the likeliest tokens.
    """
    runner = load(tiny[0], max_batch=4)
    tasks = []
    for seed, num_top in ((1, 0), (2, 5), (3, 1)):
        prompt = (*ids(4, 5), EOQ, *ids(20, seed))
        tasks.append(Read(prompt, num_top))

    together = read_all(runner, tasks)

    for task, emission in zip(tasks, together, strict=True):
        [alone] = read_all(runner, [task])
        num_predicted = 0
        for report, expected in zip(emission.logprobs, alone.logprobs, strict=True):
            assert report.token == expected.token
            if report.logprob is None:
                assert expected.logprob is None
                continue
            assert report.logprob == pytest.approx(expected.logprob, abs=1e-5)
            assert len(report.top) == task.num_top
            num_predicted += 1
        assert num_predicted > 0


async def test_echo_says_the_prompt_first(redis: Redis) -> None:
    """B24, B53: An echo starts with the prompt, as text and as ids, with and without
    log-probabilities.

    The requests go through HTTP and Redis.
    """
    runner = Echo(RunnerOptions("echo", name="echo", max_batch=4))
    async with fleet_inside(redis, {"echo": runner}) as client:

        async def complete(**fields: object) -> dict[str, Any]:
            body = {"max_tokens": 2, "echo": True} | fields
            response = await client.post("/v1/completions", json=body)
            assert response.status_code == 200, response.text
            completion: dict[str, Any] = response.json()
            return completion

        plain = await complete(prompt=["abc", [120, 121]])
        from_text, from_ids = plain["choices"]
        assert from_text["text"] == "abcab"
        assert from_text["logprobs"] is None
        assert from_ids["text"] == "xyxy"
        assert from_ids["logprobs"] is None

        reported = await complete(prompt="abc", logprobs=1)
        choice = reported["choices"][0]
        assert choice["text"] == "abcab"
        assert choice["logprobs"]["tokens"] == ["a", "b", "c", "a", "b"]
        assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -1.0, 0.0, 0.0]
        assert choice["logprobs"]["top_logprobs"][0] is None
        assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]

        prompt_only = await complete(prompt="abc", logprobs=0, max_tokens=0)
        choice = prompt_only["choices"][0]
        assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
        assert choice["finish_reason"] == "length"
        assert prompt_only["usage"]["prompt_tokens"] == 3
        assert prompt_only["usage"]["completion_tokens"] == 0

        # Who follows it as a job gets the whole answer in one frame.
        fields = {"prompt": "abc", "logprobs": 1, "max_tokens": 2, "echo": True}
        job = await client.post("/v1/completions", json=fields, headers=LATER)
        stream = await client.get(f"/v1/jobs/{job.json()['id']}/events")
        _opening, whole, done = frames(stream)
        assert whole.json["choices"] == reported["choices"]
        assert done.data == "[DONE]"


def test_it_is_one_event_for_the_log() -> None:
    """A prompt that is read is one event.

    A worker that is lost leaves all of it in the log or nothing, and then another worker reads the
    prompt again from the start.
    """
    [emission] = read_all(Echo(RunnerOptions("echo", name="echo")), [Read("hi")])

    assert isinstance(emission.ended, Done)
    assert emission.ended.finish_reason == "read"
    event = Tokens(emission.ids, emission.text, logprobs=emission.logprobs)
    assert event.logprobs == (
        TokenLogprob(None, "h"),
        TokenLogprob(-1.0, "i"),
    )
