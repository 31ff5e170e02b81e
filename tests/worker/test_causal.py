"""Causal LMs through our pages equal transformers' own generate and forward.

This holds whatever the schedule.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from scripts.train.special_tokens import byte_tokenizer
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
EOS = 3
GREEDY = Sampling(max_tokens=COUNT, seed=0, temperature=0.0)
TASKS = [Generate(text, GREEDY) for text in PROMPTS]
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
    assert_all_differ(answers)
    options = RunnerOptions(path=str(path), max_batch=4, page_size=PAGE)
    return Tiny(options, model, answers)


def assert_all_differ(answers: list[list[int]]) -> None:
    """Check that no two answers are the same: otherwise the inputs would not matter."""
    for index, answer in enumerate(answers):
        assert answer not in answers[:index]


def test_greedy_batch_equals_transformers_generate(tiny: Tiny) -> None:
    """Unequal prompts decoded together equal transformers' generate on each alone (T3, B59)."""
    assert generate_all(tiny.load(), TASKS) == tiny.answers


def test_prompts_in_parts(tiny: Tiny) -> None:
    """Chunked prefill beside rows that decode changes no answer, in parts of less than a page."""
    assert generate_all(tiny.load(step_tokens=3), TASKS) == tiny.answers


def test_staggered_arrivals(tiny: Tiny) -> None:
    """A prompt that joins while others decode changes nobody's tokens.

    Nor do rows that leave early.
    """
    serving = Serving(tiny.load(max_batch=2))
    for task in TASKS:
        serving.submit(task)
        for _ in range(3):
            serving.engine.step()
    serving.finish()

    assert serving.said == tiny.answers


def test_few_pages(tiny: Tiny) -> None:
    """Rows that gave their pages back are computed again and go on with the same tokens."""
    shape = tiny.load().net.kv_shape
    num_pages = 12
    kv_bytes = num_pages * PAGE * shape.bytes_per_token(torch.float32)
    runner = tiny.load(context_window=40, kv_bytes=kv_bytes)
    assert runner.spec.num_pages == num_pages

    serving = Serving(runner)
    serving.finish(TASKS)

    assert serving.said == tiny.answers
    assert serving.engine.load.num_preempted > 0, "there was room for all: this proves nothing"


@pytest.mark.parametrize("step_tokens", [5, 256])
def test_prefix_hits(tiny: Tiny, step_tokens: int) -> None:
    """A prompt that begins as an earlier one is continued as without the prefix cache.

    The cached prefix is longer than a window, and one hit ends in the middle of a page.
    """
    prefix = PROMPTS[3]
    longer = Generate(prefix + ", or was", GREEDY)
    expected = greedy(tiny.model, ids(prefix + ", or was"), COUNT)
    cached = len(ids(prefix)) // PAGE * PAGE
    assert cached > WINDOW

    # The last token of a prompt is always computed: it predicts the answer.
    for prefix_cache, num_cached in ((True, [0, cached, cached - 1]), (False, [0, 0, 0])):
        serving = Serving(tiny.load(step_tokens=step_tokens, prefix_cache=prefix_cache))
        serving.finish([TASKS[3]])
        serving.finish([longer, TASKS[3]])

        assert serving.said == [tiny.answers[3], expected, tiny.answers[3]]
        assert [done.num_cached_tokens for done in serving.done] == num_cached


def test_choices_equal_requests_of_their_own(tiny: Tiny) -> None:
    """n choices share one prompt's pages; each says what a request with its seed says."""
    sampling = Sampling(max_tokens=8, seed=7, temperature=1.0, n=3)
    emissions = run(tiny.load(), [Generate(PROMPTS[1], sampling)], [[]])
    choices: list[list[int]] = [[], [], []]
    for emission in emissions:
        choices[emission.choice] += emission.ids

    singles: list[list[int]] = []
    for choice in range(3):
        single = msgspec.structs.replace(sampling, n=1, seed=fold(7, choice))
        singles += generate_all(tiny.load(), [Generate(PROMPTS[1], single)])

    assert choices == singles
    assert_all_differ(singles)


def test_a_replayed_response_goes_on_as_if_never_cut(tiny: Tiny) -> None:
    """Logged tokens are run with the prompt, and never sampled again.

    They are run in parts of more than a window.
    """
    first, second, third, fourth = tiny.answers
    replayed = [first[:1], second[:7], third[: COUNT - 1], fourth[:4]]

    assert generate_all(tiny.load(step_tokens=9), TASKS, replayed) == tiny.answers


@pytest.mark.parametrize("step_tokens", [5, 256])
def test_scores_equal_the_models_own_forward(tiny: Tiny, step_tokens: int) -> None:
    """Scores of continuations behind one context equal the model's own forward (A35, B59).

    The continuations are shorter and longer than a window, and are computed in any parts.
    """
    runner = tiny.load(step_tokens=step_tokens)
    tasks = [
        Score(PROMPTS[3], (" Paris", " a good question, is it not?", "!")),
        Score("x", (" = 3",)),
    ]
    serving = Serving(runner)
    serving.finish(tasks)
    # The second time, the longer context is in the prefix cache.
    serving.finish(tasks)

    has_cached = [done.num_cached_tokens > 0 for done in serving.done]
    assert has_cached == [False, False, True, False]
    for task, done in zip([*tasks, *tasks], serving.done, strict=True):
        encoded = runner.encode(task)
        scores = end_of(done, Scored).scores
        for continuation, score in zip(encoded.continuations, scores, strict=True):
            expected = log_likelihood(tiny.model, encoded.prompt_ids, continuation)
            assert score.log_likelihood == pytest.approx(expected, abs=2e-3)


class Negated(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = -self.head(x)
        return out


def test_a_head_put_in_place_after_loading_is_the_one_that_speaks(tiny: Tiny) -> None:
    """Logits are those of the present head: packed and int8 layers come late."""
    net = tiny.load().net
    assert isinstance(net, CausalNet)
    states = torch.randn(3, net.model.config.hidden_size)
    before = net.logits(states)
    assert before.abs().max() > 0.1

    net.model.lm_head = Negated(net.model.lm_head)

    # Caps and scales behind a head are odd functions, so the sign survives them.
    assert torch.equal(net.logits(states), -before)


def test_half_precision_runs(tmp_path: Path) -> None:
    """bfloat16 on a CPU generates and scores; a score is near that of the float32 network."""
    model = write(mistral, tmp_path)
    options = RunnerOptions(path=str(tmp_path), page_size=PAGE, dtype="bfloat16")
    runner = load_runner("auto", options)

    for answer in generate_all(runner, TASKS):
        assert len(answer) == COUNT or EOS in answer

    task = Score(PROMPTS[3], (" Paris",))
    [[score]] = score_all(runner, [task])
    encoded = runner.encode(task)
    expected = log_likelihood(model, encoded.prompt_ids, encoded.continuations[0])
    assert score.log_likelihood == pytest.approx(expected, rel=0.1)


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer of characters and the merges `bc`, `ab` and ` a`, the strongest first."""
    vocab = {"</s>": 0, "a": 1, "b": 2, "c": 3, " ": 4, "ab": 5, "bc": 6, " a": 7}
    model = models.BPE(vocab=vocab, merges=[("b", "c"), ("a", "b"), (" ", "a")])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="</s>")


@pytest.mark.parametrize(
    ("context", "continuation", "expected"),
    [
        ("c", "bc", ("c", ["bc"])),
        # The space at the end moves over, and merges.
        ("c ", "a", ("c", [" a"])),
        ("c  ", "b", ("c", [" ", " ", "b"])),
        # The cut is behind as many tokens as the context has alone.
        ("ab", "c", ("ab", ["bc"])),
        # The context swallows the continuation, which is read by itself then.
        ("a", "b", ("a", ["b"])),
        ("", " a", ("</s>", [" a"])),
        ("  ", "a", ("</s>", [" ", " a"])),
    ],
)
def test_continuations_are_cut_as_lm_evaluation_harness_does(
    context: str, continuation: str, expected: tuple[str, list[str]]
) -> None:
    """Cuts follow the harness's rule, applied by hand, where a merge crosses the border."""
    tokenizer = merging_tokenizer()
    vocabulary = Vocabulary(tokenizer, 8, ChatTemplate(tokenizer))
    language = CausalLanguage(vocabulary, start_ids(tokenizer), frozenset())
    expected_context, expected_continuation = expected

    encoded = language.encode(Score(context, (continuation,)), 96)

    context_tokens = tokenizer.convert_ids_to_tokens(encoded.prompt_ids)
    assert "".join(context_tokens) == expected_context
    assert tokenizer.convert_ids_to_tokens(encoded.continuations[0]) == expected_continuation
