"""Causal LMs through our pages against transformers' own generate and forward, whatever the
schedule."""

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from scripts.train.train_sample import byte_tokenizer
from shared.messages import Generate, Sampling, Score, Scored
from tests.fixtures.worker.stepping import Serving, end_of, generate_all, run, score_all
from tests.fixtures.worker.tiny_causal import (
    FAMILIES,
    WINDOW,
    greedy,
    log_likelihood,
    mistral,
    write,
)
from worker.engine.noise import fold
from worker.engine.runner import RunnerOptions
from worker.engine.scheduler import Scheduler
from worker.models.weights import start_ids
from worker.runners.causal import CausalLanguage
from worker.runners.causal_net import CausalNet
from worker.runners.paged import PagedRunner
from worker.runners.registry import load_runner
from worker.text.chat import ChatTemplate
from worker.text.vocabulary import Vocabulary

PROMPTS = ("Hello", "Once upon a time", "x", "The capital of France is")
COUNT = 12
PAGE = 4
TASKS = [Generate(text, Sampling(max_tokens=COUNT, seed=0, temperature=0.0)) for text in PROMPTS]


TOKENIZER = byte_tokenizer()


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text)["input_ids"])


@dataclass(frozen=True)
class Tiny:
    """A saved model, and its own greedy answers to `PROMPTS`."""

    options: RunnerOptions
    model: PreTrainedModel
    answers: list[list[int]]

    def load(self, **changes: object) -> PagedRunner:
        runner = load_runner("auto", replace(self.options, **changes))  # type: ignore[arg-type]
        assert isinstance(runner, PagedRunner)
        return runner


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    path = tmp_path_factory.mktemp("causal")
    model = write(request.param, path)
    answers = [greedy(model, ids(text), COUNT) for text in PROMPTS]
    assert len({tuple(answer) for answer in answers}) == len(PROMPTS), (
        "the prompts do not matter to this network"
    )
    return Tiny(RunnerOptions(path=str(path), max_batch=4, page_size=PAGE), model, answers)


@pytest.fixture
def preempted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sequences that give way, as they do."""
    names: list[str] = []
    real = Scheduler._preempt
    monkeypatch.setattr(
        Scheduler, "_preempt", lambda self, item: (names.append(item.key), real(self, item))
    )
    return names


def test_greedy_batch_equals_transformers_generate(tiny: Tiny) -> None:
    """Unequal prompts decoded together over pages equal transformers' generate on each alone (T3,
    B59)."""
    assert generate_all(tiny.load(), TASKS) == tiny.answers


def test_prompts_in_parts(tiny: Tiny) -> None:
    """Chunked prefill beside rows that decode, in parts of less than a page."""
    assert generate_all(tiny.load(step_tokens=3), TASKS) == tiny.answers


def test_staggered_arrivals(tiny: Tiny) -> None:
    """A prompt that joins while others decode, and rows that leave early, change nobody's
    tokens."""
    serving = Serving(tiny.load(max_batch=2))
    for task in TASKS:
        serving.submit(task)
        for _ in range(3):
            serving.engine.step()
    serving.finish()
    assert serving.said == tiny.answers


def test_few_pages(tiny: Tiny, preempted: list[str]) -> None:
    """Rows that gave their pages back are computed again and go on with the same tokens."""
    shape = tiny.load()._net.kv_shape
    num_pages = 12
    runner = tiny.load(
        context_window=40, kv_bytes=num_pages * PAGE * shape.bytes_per_token(torch.float32)
    )
    assert runner.spec.num_pages == num_pages
    assert generate_all(runner, TASKS) == tiny.answers
    assert preempted, "there was room for all: this proves nothing"


@pytest.mark.parametrize("step_tokens", [5, 256])
def test_prefix_hits(tiny: Tiny, step_tokens: int) -> None:
    """A prompt that begins as an earlier one - past a window, in the middle of a page - is
    continued as without."""
    text = PROMPTS[3]
    task = msgspec.structs.replace(TASKS[3], prompt=text + ", or was")
    expected = greedy(tiny.model, ids(text + ", or was"), COUNT)
    for is_on in (True, False):
        serving = Serving(tiny.load(step_tokens=step_tokens, prefix_cache=is_on))
        serving.finish([TASKS[3]])
        serving.finish([task, TASKS[3]])
        assert serving.said == [tiny.answers[3], expected, tiny.answers[3]]
        cached = len(ids(text)) // PAGE * PAGE
        assert cached > WINDOW
        assert [done.num_cached_tokens for done in serving.done] == (
            [0, cached, cached - 1] if is_on else [0, 0, 0]
        )


def test_choices_equal_requests_of_their_own(tiny: Tiny) -> None:
    """n choices share one prompt's pages; each says what a request with its seed says."""
    sampling = Sampling(max_tokens=8, seed=7, temperature=1.0, n=3)
    emissions = run(tiny.load(), [Generate(PROMPTS[1], sampling)], [[]])
    said = [
        [token for item in emissions if item.choice == choice for token in item.ids]
        for choice in range(3)
    ]
    singles = [msgspec.structs.replace(sampling, n=1, seed=fold(7, choice)) for choice in range(3)]
    alone = [generate_all(tiny.load(), [Generate(PROMPTS[1], item)])[0] for item in singles]
    assert said == alone
    assert len({tuple(answer) for answer in alone}) == 3


def test_a_replayed_response_goes_on_as_if_never_cut(tiny: Tiny) -> None:
    """Logged tokens are run with the prompt, in parts of more than a window, and never sampled
    again."""
    replayed = [
        answer[:kept] for answer, kept in zip(tiny.answers, (1, 7, COUNT - 1, 4), strict=True)
    ]
    assert generate_all(tiny.load(step_tokens=9), TASKS, replayed) == tiny.answers


@pytest.mark.parametrize("step_tokens", [5, 256])
def test_scores_equal_the_models_own_forward(tiny: Tiny, step_tokens: int) -> None:
    """A35, B59: continuations beside each other behind one context, shorter and longer than a
    window, in any parts."""
    runner = tiny.load(step_tokens=step_tokens)
    tasks = [
        Score(PROMPTS[3], (" Paris", " a good question, is it not?", "!")),
        Score("x", (" = 3",)),
    ]
    serving = Serving(runner)
    serving.finish(tasks)
    serving.finish(tasks)  # now the contexts are found
    assert [done.num_cached_tokens > 0 for done in serving.done] == [False, False, True, False]
    for task, done in zip([*tasks, *tasks], serving.done, strict=True):
        encoded = runner.encode(task)
        expected = [
            log_likelihood(tiny.model, encoded.prompt_ids, tail) for tail in encoded.continuations
        ]
        assert [score.log_likelihood for score in end_of(done, Scored).scores] == pytest.approx(
            expected, abs=2e-3
        )


class Negated(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = -self.head(x)
        return out


def test_a_head_put_in_place_after_loading_is_the_one_that_speaks(tiny: Tiny) -> None:
    """Packed and int8 layers come late. What a network does behind its head (caps, scales) is odd:
    signs survive."""
    net = tiny.load()._net
    assert isinstance(net, CausalNet)
    states = torch.randn(3, net.model.config.hidden_size)
    before = net.logits(states)
    net.model.lm_head = Negated(net.model.lm_head)
    assert before.abs().max() > 0.1
    assert torch.equal(net.logits(states), -before)


def test_half_precision_runs(tmp_path: Path) -> None:
    """bfloat16 on a CPU: generation and scoring run, and a score is near that of the float32
    network."""
    model = write(mistral, tmp_path)
    runner = load_runner(
        "auto", RunnerOptions(path=str(tmp_path), page_size=PAGE, dtype="bfloat16")
    )
    assert all(len(answer) == COUNT or 3 in answer for answer in generate_all(runner, TASKS))
    task = Score(PROMPTS[3], (" Paris",))
    encoded = runner.encode(task)
    expected = log_likelihood(model, encoded.prompt_ids, encoded.continuations[0])
    assert score_all(runner, [task])[0][0].log_likelihood == pytest.approx(expected, rel=0.1)


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Characters and the merges `bc`, `ab` and ` a`, in that order of strength."""
    vocab = {
        text: number for number, text in enumerate(["</s>", "a", "b", "c", " ", "ab", "bc", " a"])
    }
    model = models.BPE(vocab=vocab, merges=[("b", "c"), ("a", "b"), (" ", "a")])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="</s>")


@pytest.mark.parametrize(
    ("context", "continuation", "expected"),
    [
        ("c", "bc", ("c", ["bc"])),
        ("c ", "a", ("c", [" a"])),  # the space at the end moves over, and merges
        ("c  ", "b", ("c", [" ", " ", "b"])),
        ("ab", "c", ("ab", ["bc"])),  # cut behind as many tokens as the context has alone
        ("a", "b", ("a", ["b"])),  # swallowed by the context: read by itself
        ("", " a", ("</s>", [" a"])),
        ("  ", "a", ("</s>", [" ", " a"])),
    ],
)
def test_continuations_are_cut_as_lm_evaluation_harness_does(
    context: str, continuation: str, expected: tuple[str, list[str]]
) -> None:
    """Its rule, by hand, on a tokenizer that merges across the border."""
    tokenizer = merging_tokenizer()
    vocabulary = Vocabulary(tokenizer, 8, ChatTemplate(tokenizer))
    language = CausalLanguage(vocabulary, start_ids(tokenizer), frozenset())
    encoded = language.encode(Score(context, (continuation,)), 96)
    assert "".join(tokenizer.convert_ids_to_tokens(encoded.prompt_ids)) == expected[0]
    assert tokenizer.convert_ids_to_tokens(encoded.continuations[0]) == expected[1]
