"""Choices, penalties and log-probabilities through engine and model.

The oracles are transformers' `generate` and `forward`.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor
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


def of_task(number: int, emissions: list[Emission]) -> list[Emission]:
    return [emission for emission in emissions if emission.key == str(number)]


def text_of(emissions: list[Emission]) -> str:
    return "".join(emission.text for emission in emissions)


def choices_of(emissions: list[Emission], number: int = 0) -> list[list[int]]:
    """Return the ids of each choice of one task."""
    choices: dict[int, list[int]] = {}
    for emission in of_task(number, emissions):
        choices.setdefault(emission.choice, []).extend(emission.ids)
    return [choices[choice] for choice in range(len(choices))]


def test_a_choice_is_the_same_however_many_there_are(runner: PagedRunner) -> None:
    """DESIGN 5: Choice k of n is choice k of any larger n, and choice 0 is the answer to n = 1.

    It makes no difference whether the prompt is cached.
    """
    answers = {}
    for n in (1, 2, 3, 7):
        task = Generate(PROMPTS[0], Sampling(10, seed=5, temperature=1.3, n=n))
        answers[n] = choices_of(run(runner, [task], [[]]))

    most = answers[7]
    assert len({tuple(ids) for ids in most}) == 7, "choices that do not differ prove nothing"
    assert answers[1] == most[:1]
    assert answers[2] == most[:2]
    assert answers[3] == most[:3]


def test_choices_do_not_depend_on_their_company(runner: PagedRunner) -> None:
    """P3: With n > 1, a request gets the same choices beside others as alone.

    Three requests with different parameters have more sequences than the batch holds. Only the
    request that asks for log-probabilities gets them.
    """
    penalised = Sampling(8, seed=1, temperature=1.0, n=3, repetition_penalty=1.4, logprobs=2)
    restricted = Sampling(6, seed=2, temperature=0.8, n=2, min_p=0.05, frequency_penalty=1.0)
    biased = Sampling(7, seed=3, temperature=0.0, logit_bias=((70, 3.0),), min_tokens=7)
    tasks = [
        Generate(PROMPTS[0], penalised),
        Generate(PROMPTS[1], restricted),
        Generate(PROMPTS[0], biased),
    ]

    together = run(runner, tasks, [[], [], []])

    for number, task in enumerate(tasks):
        alone = run(runner, [task], [[]])
        assert choices_of(together, number) == choices_of(alone)

    for number, num_logprobs in enumerate((1, 0, 0)):
        for emission in of_task(number, together):
            assert len(emission.logprobs) == num_logprobs


def test_greedy_with_penalty_and_least_length_equals_transformers_generate(
    tiny: tuple[Path, HrmTextForCausalLM], runner: PagedRunner
) -> None:
    """Greedy answers are those of `generate`.

    It penalises prompt and response and withholds the end token in the same way.
    """
    _, model = tiny
    eos = next(iter(runner.eos_ids))
    sampling = Sampling(12, seed=0, temperature=0.0, repetition_penalty=1.5, min_tokens=5)
    for text in PROMPTS:
        task = Generate(text, sampling)
        [answer] = choices_of(run(runner, [task], [[]]))

        prompt = torch.tensor([runner.encode(task).prompt_ids])
        out = model.generate(
            prompt,
            token_type_ids=torch.ones_like(prompt),
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            do_sample=False,
            repetition_penalty=1.5,
            min_new_tokens=5,
            eos_token_id=eos,
        )
        assert answer == out[0, prompt.shape[1] :].tolist()


def test_an_end_token_that_is_wanted_at_once_comes_when_it_may(runner: PagedRunner) -> None:
    """A certain end token waits for `min_tokens`, and ends nothing if it is ignored.

    A bias makes it certain.
    """
    eos = next(iter(runner.eos_ids))
    bias = ((eos, 100.0),)
    samplings = [
        Sampling(9, seed=0, logit_bias=bias),
        Sampling(9, seed=0, logit_bias=bias, min_tokens=4),
        Sampling(9, seed=0, logit_bias=bias, min_tokens=4, ignore_eos=True),
        Sampling(9, seed=0, logit_bias=bias, min_tokens=4, stop_ids=(eos,), ignore_eos=True),
    ]
    tasks = [Generate(PROMPTS[0], sampling) for sampling in samplings]

    emissions = run(runner, tasks, [[], [], [], []])

    at_once = choices_of(emissions, 0)[0]
    late = choices_of(emissions, 1)[0]
    ignored = choices_of(emissions, 2)[0]
    as_stop_id = choices_of(emissions, 3)[0]
    assert at_once == [eos]
    assert len(late) == 5
    assert eos not in late[:4]
    assert ignored == [eos] * 9
    assert as_stop_id == late

    # In the order of the ends: the ignored one goes on to the cap.
    reasons = []
    for emission in emissions:
        if isinstance(emission.ended, Done):
            reasons.append(emission.ended.finish_reason)
    assert reasons == ["stop", "stop", "stop", "length"]
    assert text_of(of_task(2, emissions)) == "", "an ignored end token has no text"


def test_logprobs_equal_transformers_own(
    tiny: tuple[Path, HrmTextForCausalLM], runner: PagedRunner
) -> None:
    """Log-probabilities of every token and its rivals are the model's own.

    Temperature, top-p and penalties do not change them. The tokens' texts join to the whole text.
    """
    _, model = tiny
    sampling = Sampling(
        10, seed=4, temperature=1.5, top_p=0.8, repetition_penalty=1.3, logprobs=4, n=2
    )
    task = Generate(PROMPTS[2], sampling)
    prompt = runner.encode(task).prompt_ids

    emissions = run(runner, [task], [[]])

    for choice, ids in enumerate(choices_of(emissions)):
        text = ""
        reports: list[TokenLogprob] = []
        for emission in emissions:
            if emission.choice == choice:
                text += emission.text
                reports += emission.logprobs

        logits = own_logits(model, prompt, tuple(ids)).double()
        # The last token of the prompt predicts the first of the answer.
        log_probs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        for row, token, report in zip(log_probs, ids, reports, strict=True):
            check_logprob(report, token, row)

        joined = "".join(report.token for report in reports)
        assert text.startswith(joined)
        assert set(text.removeprefix(joined)) <= {"\ufffd"}


def check_logprob(report: TokenLogprob, token: int, log_probs: Tensor) -> None:
    """Compare a report with the log-probabilities of the whole vocabulary."""
    assert report.logprob == pytest.approx(float(log_probs[token]), abs=1e-4)
    likeliest = log_probs.topk(4)
    assert len(report.top) == 4
    for rank, (rival, _, value) in enumerate(report.top):
        assert rival == int(likeliest.indices[rank])
        assert value == pytest.approx(float(likeliest.values[rank]), abs=1e-4)
