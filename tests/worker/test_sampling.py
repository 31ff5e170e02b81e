"""Choices, penalties and log-probabilities through engine and model, against transformers' generate
and forward."""

from pathlib import Path

import pytest
import torch
from transformers import HrmTextForCausalLM

from shared.messages import Done, Generate, Sampling, TokenLogprob
from tests.fixtures.tiny_hrm_text import PROMPTS, own_logits, write_tiny
from tests.fixtures.worker.stepping import run
from worker.engine.request import Emission
from worker.engine.runner import RunnerOptions
from worker.runners import hrm_text
from worker.runners.paged import PagedRunner


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HrmTextForCausalLM]:
    path = tmp_path_factory.mktemp("hrm-text")
    return path, write_tiny(path)


@pytest.fixture
def runner(tiny: tuple[Path, HrmTextForCausalLM]) -> PagedRunner:
    return hrm_text.load(RunnerOptions(path=str(tiny[0]), max_batch=4, page_size=4))


def choices_of(emissions: list[Emission], key: int = 0) -> list[list[int]]:
    """The ids of each choice of one task."""
    own = [item for item in emissions if item.key == str(key)]
    count = max(item.choice for item in own) + 1
    return [
        [token for item in own if item.choice == choice for token in item.ids]
        for choice in range(count)
    ]


def test_a_choice_is_the_same_however_many_there_are(runner: PagedRunner) -> None:
    """DESIGN 5: choice k of n is choice k of any larger n, and choice 0 the answer to n = 1, cached
    prompt or not."""
    answers = {
        n: choices_of(
            run(runner, [Generate(PROMPTS[0], Sampling(10, 5, temperature=1.3, n=n))], [[]])
        )
        for n in (1, 2, 3, 7)
    }
    most = answers[7]
    assert len({tuple(ids) for ids in most}) == 7, "choices that do not differ prove nothing"
    assert all(answers[n] == most[:n] for n in answers)


def test_choices_do_not_depend_on_their_company(runner: PagedRunner) -> None:
    """P3 for n > 1: more sequences than places, of three requests with different wishes."""
    tasks = [
        Generate(
            PROMPTS[0], Sampling(8, 1, temperature=1.0, n=3, repetition_penalty=1.4, logprobs=2)
        ),
        Generate(
            PROMPTS[1], Sampling(6, 2, temperature=0.8, n=2, min_p=0.05, frequency_penalty=1.0)
        ),
        Generate(
            PROMPTS[0], Sampling(7, 3, temperature=0.0, logit_bias=((70, 3.0),), min_tokens=7)
        ),
    ]
    together = run(runner, tasks, [[], [], []])
    for number, task in enumerate(tasks):
        alone = run(runner, [task], [[]])
        assert choices_of(together, number) == choices_of(alone)
        reports = [item.logprobs for item in together if item.key == str(number)]
        assert [len(report) for report in reports] == [1 if number == 0 else 0] * len(reports)


def test_greedy_with_penalty_and_least_length_equals_transformers_generate(
    tiny: tuple[Path, HrmTextForCausalLM], runner: PagedRunner
) -> None:
    """The oracle penalises prompt and response and withholds the end token in the same way."""
    eos = next(iter(runner.eos_ids))
    for text in PROMPTS:
        sampling = Sampling(12, 0, temperature=0.0, repetition_penalty=1.5, min_tokens=5)
        [ours] = choices_of(run(runner, [Generate(text, sampling)], [[]]))
        prompt = torch.tensor([runner.encode(Generate(text, sampling)).prompt_ids])
        out = tiny[1].generate(
            prompt,
            token_type_ids=torch.ones_like(prompt),
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            do_sample=False,
            repetition_penalty=1.5,
            min_new_tokens=5,
            eos_token_id=eos,
        )
        assert ours == out[0, prompt.shape[1] :].tolist()


def test_an_end_token_that_is_wanted_at_once_comes_when_it_may(runner: PagedRunner) -> None:
    """A bias that makes the end token certain: it waits for `min_tokens`, and ends nothing if it is
    ignored."""
    eos = next(iter(runner.eos_ids))
    wish = ((eos, 100.0),)
    tasks = [
        Generate(PROMPTS[0], Sampling(9, 0, logit_bias=wish)),
        Generate(PROMPTS[0], Sampling(9, 0, logit_bias=wish, min_tokens=4)),
        Generate(PROMPTS[0], Sampling(9, 0, logit_bias=wish, min_tokens=4, ignore_eos=True)),
        Generate(
            PROMPTS[0],
            Sampling(9, 0, logit_bias=wish, min_tokens=4, stop_ids=(eos,), ignore_eos=True),
        ),
    ]
    emissions = run(runner, tasks, [[]] * 4)
    said = [choices_of(emissions, number)[0] for number in range(4)]
    assert said[0] == [eos]
    assert [len(ids) for ids in said] == [1, 5, 9, 5]
    assert said[1] == said[3] and eos not in said[1][:4]
    assert said[2] == [eos] * 9
    ends = {item.key: item.ended for item in emissions if item.ended is not None}
    assert [end.finish_reason for end in ends.values() if isinstance(end, Done)] == [
        "stop",
        "stop",
        "stop",
        "length",
    ]
    assert "".join(item.text for item in emissions if item.key == "2") == "", (
        "an ignored end token has no text"
    )


def test_logprobs_equal_transformers_own(
    tiny: tuple[Path, HrmTextForCausalLM], runner: PagedRunner
) -> None:
    """Of every token and its rivals, whatever else shaped the draw; texts join to the whole
    text."""
    sampling = Sampling(10, 4, temperature=1.5, top_p=0.8, repetition_penalty=1.3, logprobs=4, n=2)
    task = Generate(PROMPTS[2], sampling)
    emissions = run(runner, [task], [[]])
    for choice, ids in enumerate(choices_of(emissions)):
        own = [item for item in emissions if item.choice == choice]
        reports: list[TokenLogprob] = [report for item in own for report in item.logprobs]
        prompt = runner.encode(task).prompt_ids
        table = (
            own_logits(tiny[1], prompt, tuple(ids)).double().log_softmax(-1)[len(prompt) - 1 : -1]
        )
        for row, token, report in zip(table, ids, reports, strict=True):
            assert report.logprob == pytest.approx(float(row[token]), abs=1e-4)
            likeliest = row.topk(4)
            assert [item for item, _, _ in report.top] == likeliest.indices.tolist()
            assert [value for _, _, value in report.top] == pytest.approx(
                likeliest.values.tolist(), abs=1e-4
            )
        text = "".join(item.text for item in own)
        named = "".join(report.token for report in reports)
        assert text.startswith(named) and set(text[len(named) :]) <= {"\ufffd"}
