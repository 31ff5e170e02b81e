"""Whole texts of any length: how they are cut into windows, and what each mechanism says of
them."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import GPT2LMHeadModel, HrmTextForCausalLM

from scripts.train.train_sample import byte_tokenizer
from shared.errors import InvalidRequest
from shared.messages import ContinuationScore, Done, Generate, Sampling, Score, Scored
from tests.fixtures.scored_models import WINDOW, ids, write_causal
from tests.fixtures.tiny_hrm_text import write_tiny
from tests.fixtures.worker.act_fixtures import Net, write_bundle
from tests.fixtures.worker.stepping import end_of, run, score_all
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
    """(context, continuation, number given) of every window."""
    windows = (encoded, *encoded.windows)
    assert not any(window.windows for window in windows[1:])
    return [(window.prompt_ids, *window.continuations, window.num_given) for window in windows]  # type: ignore[misc]


def scored(encoded: Encoded) -> Ids:
    return tuple(token for _, tail, given in cut(encoded) for token in tail[given:])


def test_windows_are_lm_evaluation_harnesss() -> None:
    """Its documented example: ten tokens, a context of four, one token of context between the
    windows."""
    assert cut(encode_rolling((99,), tuple(range(10)), 4)) == [
        ((99,), (0, 1, 2, 3), 0),
        ((3,), (4, 5, 6, 7), 0),
        ((5, 6, 7), (8, 9), 0),
    ]


def test_windows_of_a_response_keep_their_prompt() -> None:
    assert cut(encode_rolling_response((98, 99), tuple(range(10)), 5)) == [
        ((98, 99), (0, 1, 2, 3), 0),
        ((98, 99), (3, 4, 5, 6), 1),
        ((98, 99), (6, 7, 8, 9), 1),
    ]
    assert cut(encode_rolling_response((98, 99), tuple(range(8)), 5))[-1] == (
        (98, 99),
        (4, 5, 6, 7),
        3,
    )


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 40])
def test_every_token_is_scored_once_within_the_window(length: int) -> None:
    text = tuple(range(length))
    for encoded in (encode_rolling((99,), text, 8), encode_rolling_response((98, 99), text, 8)):
        assert scored(encoded) == text
        assert all(len(context) + len(tail) - 1 <= 8 for context, tail, _ in cut(encoded))
    stretches = encode_stretches((99,), text, 8, size=3)
    assert scored(stretches) == text
    assert all(1 <= len(context) <= 8 and len(tail) <= 3 for context, tail, _ in cut(stretches))


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no start token"):
        encode_rolling((), (1, 2), 8)
    with pytest.raises(InvalidRequest, match="no tokens"):
        encode_stretches((1,), (), 8, size=2)


def rolling(text: str | Ids, **more: object) -> Score:
    return Score("", (text,), rolling=True, **more)  # type: ignore[arg-type]


def check(score: ContinuationScore, expected: float, num_tokens: int) -> None:
    assert score.log_likelihood == pytest.approx(expected, abs=0.02, rel=1e-5)
    assert score.num_tokens == num_tokens


def test_a_causal_lm_conditions_each_window_on_what_came_before(tmp_path: Path) -> None:
    """Against the network's own forward over each window, and for a short text over the whole."""
    model = write_causal(tmp_path, gpt2)
    assert isinstance(model, GPT2LMHeadModel)
    runner = load_runner("auto", RunnerOptions(path=str(tmp_path), max_batch=2, step_tokens=64))

    def log_probs(read: Ids, wanted: Ids) -> float:
        with torch.no_grad():
            shares = model(torch.tensor([read])).logits[0, -len(wanted) :].double().log_softmax(-1)
        return sum(float(shares[at, token]) for at, token in enumerate(wanted))

    long, short = score_all(runner, [rolling(LONG), rolling("Hello")])
    first = WINDOW
    second = 2 * WINDOW
    expected = log_probs((START, *LONG[: first - 1]), LONG[:first])
    expected += log_probs(LONG[first - 1 : second - 1], LONG[first:second])
    expected += log_probs(LONG[-WINDOW - 1 : -1], LONG[second:])
    check(long[0], expected, len(LONG))
    (text,) = runner.encode(rolling("Hello")).continuations
    check(short[0], log_probs((START, *text[:-1]), text), 5)
    assert runner.encode(Score("", ("Hello",))) == runner.encode(rolling("Hello"))


def test_hrm_text_reads_the_text_as_the_response_to_an_empty_prompt(tmp_path: Path) -> None:
    """Against transformers: the marks in both directions, then causally what is given, then what is
    scored."""
    model = write_tiny(tmp_path)
    runner = load_runner("auto", RunnerOptions(path=str(tmp_path), max_batch=2, step_tokens=64))
    start = runner.encode(Score("", ("x",), condition="cot")).prompt_ids
    assert len(start) == 3
    room = WINDOW + 1 - len(start)
    total = 0.0
    spans = [
        (0, 0, room),
        (room - 1, room, 2 * room - 1),
        (len(LONG) - room, 2 * room - 1, len(LONG)),
    ]
    for shown, begin, end in spans:
        total += response_log_probs(model, start, LONG[shown:end], begin - shown)
    (long,), (short,) = score_all(
        runner, [rolling(LONG, condition="cot"), rolling("Hello", condition="cot")]
    )
    check(long, total, len(LONG))
    check(
        short,
        response_log_probs(model, start, runner.encode(rolling("Hello")).continuations[0], 0),
        5,
    )
    assert runner.encode(Score("", ("Hello",))) == runner.encode(rolling("Hello"))


@torch.no_grad()
def response_log_probs(model: HrmTextForCausalLM, prompt: Ids, response: Ids, given: int) -> float:
    read = torch.tensor([[*prompt, *response[:-1]]])
    types = torch.tensor([[1] * len(prompt) + [0] * (len(response) - 1)])
    shares = (
        model(input_ids=read, token_type_ids=types, use_cache=False)
        .logits[0, len(prompt) - 1 :]
        .double()
    )
    return sum(
        float(shares[at].log_softmax(-1)[response[at]]) for at in range(given, len(response))
    )


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> ActRunner:
    path = tmp_path_factory.mktemp("brain")
    byte_tokenizer().save_pretrained(path / "tokenizer")
    write_bundle(path, Net(vocab=264, max_seq_len=20), tokenizer="tokenizer")
    runner = load_runner("auto", RunnerOptions(path=str(path), max_batch=4))
    assert isinstance(runner, ActRunner)
    return runner


@torch.no_grad()
def act_log_probs(model: ActModel, row: Ids) -> torch.Tensor:
    """Log-probabilities [S, V] of one row after one segment."""
    out = model.forward_segment(
        torch.tensor([row]), torch.tensor([len(row)]), model.initial_carry(1, len(row))
    )
    return model.logits(out.hidden)[0].double().log_softmax(-1)


def test_a_brain_reads_for_each_token_all_the_context_that_fits(brain: ActRunner) -> None:
    """Strict: as many rows as tokens, each cut at its beginning."""
    text = LONG[:50]
    whole = (START, *text)
    rows = [whole[max(0, at - 20) : at] for at in range(1, len(whole))]
    expected = sum(
        float(act_log_probs(brain._model, row)[-1, token])
        for row, token in zip(rows, text, strict=True)
    )
    ((score,),) = score_all(brain, [rolling(text)])
    check(score, expected, 50)


def test_aios_compat_reads_the_end_of_the_text_once(brain: ActRunner) -> None:
    """Upstream's own rule: the last tokens that fit, in one pass, the first of them unscored."""
    encoded = brain.encode(rolling(LONG[:50], method="aios_compat"))
    assert encoded.num_truncated == 30
    log_probs = act_log_probs(brain._model, LONG[30:50])
    expected = sum(float(log_probs[at, token]) for at, token in enumerate(LONG[31:50]))
    ((score,),) = score_all(brain, [rolling(LONG[:50], method="aios_compat")])
    check(score, expected, 19)
    with pytest.raises(InvalidRequest, match="two are expected"):
        brain.encode(rolling("x", method="aios_compat"))


@pytest.mark.parametrize("method", ["strict", "aios_compat"])
def test_a_causal_brain_is_cut_as_a_causal_lm(
    tmp_path: Path, method: Literal["strict", "aios_compat"]
) -> None:
    """Windows over pages, whose keys hold whatever is read behind them; `aios_compat` stays
    upstream's one pass."""
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    write_bundle(tmp_path, Net(vocab=264, max_seq_len=20, causal=True), tokenizer="tokenizer")
    runner = load_runner("auto", RunnerOptions(path=str(tmp_path), max_batch=4, page_size=4))
    assert isinstance(runner, PagedRunner) and isinstance(runner._net, ActCausalNet)
    model = runner._net.model
    text = LONG[:50]
    expected = 0.0
    encoded = runner.encode(rolling(text, method=method))
    if method == "strict":
        assert cut(encoded) == cut(encode_rolling((START,), text, 20))
    else:
        assert cut(encoded) == [(text[30:31], text[31:], 0)]
    for context, tail, _ in cut(encoded):
        log_probs = act_log_probs(model, (*context, *tail[:-1]))[len(context) - 1 :]
        expected += sum(float(log_probs[at, token]) for at, token in enumerate(tail))
    ((score,),) = score_all(runner, [rolling(text, method=method)])
    check(score, expected, 50 if method == "strict" else 19)
    byte_ids = runner.encode(Score((), ((40, 41),)))
    assert byte_ids.prompt_ids == (START,), "an empty context is the start token"


def test_the_greedy_flag_and_the_end_are_those_of_all_windows(tmp_path: Path) -> None:
    """One end for all windows; one ungreedy token anywhere makes the text ungreedy."""
    write_causal(tmp_path, gpt2)
    runner = load_runner("auto", RunnerOptions(path=str(tmp_path), context_window=16))
    prompt = Generate((START,), Sampling(15, 0, temperature=0.0, ignore_eos=True))
    (first,) = [tuple(t for e in run(runner, [prompt], [[]]) for t in e.ids)]
    nearly = (*first, 11, 12, 13)
    emissions = run(runner, [rolling(first), rolling(nearly)], [[], []])
    ends = {item.key: item.ended for item in emissions}
    assert len(emissions) == 2
    for key, length, is_greedy in (("0", 15, True), ("1", 18, False)):
        done = ends[key]
        assert isinstance(done, Done)
        assert (done.finish_reason, done.num_completion_tokens) == ("score", 0)
        assert [(score.num_tokens, score.is_greedy) for score in end_of(done, Scored).scores] == [
            (length, is_greedy)
        ]
