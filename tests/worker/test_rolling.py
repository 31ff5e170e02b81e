"""Scores of whole texts of any length: their windows, and the scores of each mechanism."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, HrmTextForCausalLM

from scripts.train.special_tokens import byte_tokenizer
from shared.errors import InvalidRequest
from shared.messages import ContinuationScore, Done, Generate, Sampling, Score, Scored
from tests.fixtures.scored_models import WINDOW, ids, write_causal
from tests.fixtures.tiny_hrm_text import write_tiny
from tests.fixtures.worker.act_fixtures import Net, write_bundle
from tests.fixtures.worker.stepping import end_of, generate_all, run, score_all
from tests.fixtures.worker.tiny_causal import gpt2
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Encoded
from worker.models.hrm_act import ActModel
from worker.runners.hrm_act import ActRunner
from worker.runners.hrm_act_causal import ActCausalNet
from worker.runners.paged import PagedRunner
from worker.runners.registry import load_runner
from worker.text.rolling import encode_rolling, encode_rolling_response, encode_stretches

Ids = tuple[int, ...]
START = byte_tokenizer().bos_token_id
LONG = ids(3 * WINDOW - 20, 5)


def cut(encoded: Encoded) -> list[tuple[Ids, Ids, int]]:
    """Return context, continuation and number of given tokens of every window."""
    windows = []
    for window in (encoded, *encoded.windows):
        assert window is encoded or not window.windows
        [tail] = window.continuations
        windows.append((window.prompt_ids, tail, window.num_given))
    return windows


def scored(encoded: Encoded) -> Ids:
    """Return the tokens that are scored, over all windows."""
    tokens: list[int] = []
    for _, tail, num_given in cut(encoded):
        tokens += tail[num_given:]
    return tuple(tokens)


def total_of(log_probs: Tensor, tokens: Ids) -> float:
    """Return the sum of the log-probabilities of some tokens, one from each of the first rows."""
    total = 0.0
    for position, token in enumerate(tokens):
        total += float(log_probs[position, token])
    return total


def test_windows_are_lm_evaluation_harnesss() -> None:
    """The windows are those of its documented example.

    Ten tokens are scored in a context of four, with one token of context between the windows.
    """
    assert cut(encode_rolling((99,), tuple(range(10)), 4)) == [
        ((99,), (0, 1, 2, 3), 0),
        ((3,), (4, 5, 6, 7), 0),
        ((5, 6, 7), (8, 9), 0),
    ]


def test_windows_of_a_response_keep_their_prompt() -> None:
    """Every window of a response starts with the prompt, and the last window is full."""
    prompt = (98, 99)

    even = encode_rolling_response(prompt, tuple(range(10)), 5)
    assert cut(even) == [
        (prompt, (0, 1, 2, 3), 0),
        (prompt, (3, 4, 5, 6), 1),
        (prompt, (6, 7, 8, 9), 1),
    ]

    uneven = encode_rolling_response(prompt, tuple(range(8)), 5)
    assert cut(uneven)[-1] == (prompt, (4, 5, 6, 7), 3)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 40])
def test_every_token_is_scored_once_within_the_window(length: int) -> None:
    """Every token of a text is scored exactly once, in a window that fits the model."""
    text = tuple(range(length))

    for encoded in (encode_rolling((99,), text, 8), encode_rolling_response((98, 99), text, 8)):
        assert scored(encoded) == text
        for context, tail, _ in cut(encoded):
            # Nothing reads the last token.
            assert len(context) + len(tail) - 1 <= 8

    stretches = encode_stretches((99,), text, 8, size=3)
    assert scored(stretches) == text
    for context, tail, _ in cut(stretches):
        assert 1 <= len(context) <= 8
        assert len(tail) <= 3


def test_what_cannot_be_scored_is_refused() -> None:
    """A text without a start token before it, or without tokens, is refused."""
    with pytest.raises(InvalidRequest, match="no start token"):
        encode_rolling((), (1, 2), 8)
    with pytest.raises(InvalidRequest, match="no tokens"):
        encode_stretches((1,), (), 8, size=2)


def rolling(text: str | Ids, **fields: object) -> Score:
    return Score("", (text,), rolling=True, **fields)  # type: ignore[arg-type]


def check(score: ContinuationScore, expected: float, num_tokens: int) -> None:
    assert score.log_likelihood == pytest.approx(expected, abs=0.02, rel=1e-5)
    assert score.num_tokens == num_tokens


def test_a_causal_lm_conditions_each_window_on_what_came_before(tmp_path: Path) -> None:
    """Scores are the network's own forward over each window.

    A short text is one window.
    """
    model = write_causal(tmp_path, gpt2)
    assert isinstance(model, GPT2LMHeadModel)
    runner = load_runner("auto", RunnerOptions(path=str(tmp_path), max_batch=2, step_tokens=64))

    def log_probs(read: Ids, wanted: Ids) -> float:
        """Return the log-probability of `wanted`, each token read one position before it."""
        with torch.no_grad():
            logits = model(torch.tensor([read])).logits[0, -len(wanted) :]
        return total_of(logits.double().log_softmax(-1), wanted)

    [long], [short] = score_all(runner, [rolling(LONG), rolling("Hello")])

    first = WINDOW
    second = 2 * WINDOW
    expected = log_probs((START, *LONG[: first - 1]), LONG[:first])
    expected += log_probs(LONG[first - 1 : second - 1], LONG[first:second])
    # The last window is full: it reads tokens again that the one before it has scored.
    expected += log_probs(LONG[-WINDOW - 1 : -1], LONG[second:])
    check(long, expected, len(LONG))

    [text] = runner.encode(rolling("Hello")).continuations
    check(short, log_probs((START, *text[:-1]), text), num_tokens=5)
    assert runner.encode(Score("", ("Hello",))) == runner.encode(rolling("Hello"))


def test_hrm_text_reads_the_text_as_the_response_to_an_empty_prompt(tmp_path: Path) -> None:
    """Scores are those of transformers for a response to an empty prompt.

    The model sees the marks in both directions, and the response causally.
    """
    model = write_tiny(tmp_path)
    runner = load_runner("auto", RunnerOptions(path=str(tmp_path), max_batch=2, step_tokens=64))
    start = runner.encode(Score("", ("x",), condition="cot")).prompt_ids
    assert len(start) == 3

    tasks = [rolling(LONG, condition="cot"), rolling("Hello", condition="cot")]
    [long], [short] = score_all(runner, tasks)

    # Each window reads from `shown` on, and scores from `begin` to `end`.
    room = WINDOW + 1 - len(start)
    spans = [
        (0, 0, room),
        (room - 1, room, 2 * room - 1),
        (len(LONG) - room, 2 * room - 1, len(LONG)),
    ]
    expected = 0.0
    for shown, begin, end in spans:
        expected += response_log_probs(model, start, LONG[shown:end], num_given=begin - shown)
    check(long, expected, len(LONG))

    [text] = runner.encode(rolling("Hello")).continuations
    check(short, response_log_probs(model, start, text, num_given=0), num_tokens=5)
    assert runner.encode(Score("", ("Hello",))) == runner.encode(rolling("Hello"))


@torch.no_grad()
def response_log_probs(
    model: HrmTextForCausalLM, prompt: Ids, response: Ids, num_given: int
) -> float:
    """Return the log-probability of a response behind its first `num_given` tokens."""
    ids = torch.tensor([[*prompt, *response[:-1]]])
    types = torch.tensor([[1] * len(prompt) + [0] * (len(response) - 1)])
    out = model(input_ids=ids, token_type_ids=types, use_cache=False)
    log_probs = out.logits[0, len(prompt) - 1 :].double().log_softmax(-1)
    return total_of(log_probs[num_given:], response[num_given:])


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> ActRunner:
    path = tmp_path_factory.mktemp("brain")
    byte_tokenizer().save_pretrained(path / "tokenizer")
    write_bundle(path, Net(vocab=264, max_seq_len=20), tokenizer="tokenizer")
    runner = load_runner("auto", RunnerOptions(path=str(path), max_batch=4))
    assert isinstance(runner, ActRunner)
    return runner


@torch.no_grad()
def act_log_probs(model: ActModel, row: Ids) -> Tensor:
    """Return the log-probabilities [tokens, vocab] of one row after one segment."""
    carry = model.initial_carry(1, len(row))
    out = model.forward_segment(torch.tensor([row]), torch.tensor([len(row)]), carry)
    return model.logits(out.hidden)[0].double().log_softmax(-1)


def test_a_brain_reads_for_each_token_all_the_context_that_fits(brain: ActRunner) -> None:
    """A strict score has one row for each token, with as much context as the model can read."""
    text = LONG[:50]
    whole = (START, *text)

    [[score]] = score_all(brain, [rolling(text)])

    expected = 0.0
    for position in range(1, len(whole)):
        row = whole[max(0, position - 20) : position]
        log_probs = act_log_probs(brain.model, row)
        expected += float(log_probs[-1, whole[position]])
    check(score, expected, num_tokens=50)


def test_aios_compat_reads_the_end_of_the_text_once(brain: ActRunner) -> None:
    """The last tokens that fit are read in one pass, and the first of them has no score.

    That is upstream's own rule.
    """
    task = rolling(LONG[:50], method="aios_compat")
    assert brain.encode(task).num_truncated == 30

    [[score]] = score_all(brain, [task])

    log_probs = act_log_probs(brain.model, LONG[30:50])
    check(score, total_of(log_probs, LONG[31:50]), num_tokens=19)
    with pytest.raises(InvalidRequest, match="two are expected"):
        brain.encode(rolling("x", method="aios_compat"))


@pytest.mark.parametrize("method", ["strict", "aios_compat"])
def test_a_causal_brain_is_cut_as_a_causal_lm(
    tmp_path: Path, method: Literal["strict", "aios_compat"]
) -> None:
    """A causal brain has a causal LM's windows, whose keys and values lie in pages.

    `aios_compat` is upstream's one pass.
    """
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    write_bundle(tmp_path, Net(vocab=264, max_seq_len=20, causal=True), tokenizer="tokenizer")
    runner = load_runner("auto", RunnerOptions(path=str(tmp_path), max_batch=4, page_size=4))
    assert isinstance(runner, PagedRunner)
    assert isinstance(runner.net, ActCausalNet)
    text = LONG[:50]
    task = rolling(text, method=method)

    windows = cut(runner.encode(task))
    if method == "strict":
        assert windows == cut(encode_rolling((START,), text, 20))
        num_tokens = 50
    else:
        assert windows == [(text[30:31], text[31:], 0)]
        num_tokens = 19

    [[score]] = score_all(runner, [task])

    expected = 0.0
    for context, tail, _ in windows:
        log_probs = act_log_probs(runner.net.model, (*context, *tail[:-1]))
        expected += total_of(log_probs[len(context) - 1 :], tail)
    check(score, expected, num_tokens)

    byte_ids = runner.encode(Score((), ((40, 41),)))
    assert byte_ids.prompt_ids == (START,), "an empty context is the start token"


def test_the_greedy_flag_and_the_end_are_those_of_all_windows(tmp_path: Path) -> None:
    """All windows have one end, and one token that is not greedy makes the text not greedy."""
    write_causal(tmp_path, gpt2)
    runner = load_runner("auto", RunnerOptions(path=str(tmp_path), context_window=16))
    prompt = Generate((START,), Sampling(15, seed=0, temperature=0.0, ignore_eos=True))
    [greedy] = generate_all(runner, [prompt])
    nearly_greedy = [*greedy, 11, 12, 13]

    tasks = [rolling(tuple(greedy)), rolling(tuple(nearly_greedy))]
    emissions = run(runner, tasks, [[], []])

    assert len(emissions) == 2
    ends = {emission.key: emission.ended for emission in emissions}
    for key, num_tokens, is_greedy in (("0", 15, True), ("1", 18, False)):
        done = ends[key]
        assert isinstance(done, Done)
        assert done.finish_reason == "score"
        assert done.num_completion_tokens == 0
        [score] = end_of(done, Scored).scores
        assert score.num_tokens == num_tokens
        assert score.is_greedy == is_greedy
