"""Scoring over pages against token-by-token decoding with transformers' own cache, continuation by
continuation."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import HrmTextForCausalLM, PreTrainedModel

from shared.errors import InvalidRequest, WorkerFailed
from shared.messages import ContinuationScore, Done, Generate, Sampling, Score, Scored
from tests.fixtures.scored_models import PAGE, WINDOW, Ids, Model, ids, load, tiny
from tests.fixtures.tiny_hrm_text import write_tiny
from tests.fixtures.worker.stepping import end_of, generate_all, run, score_all
from worker.engine import scoring
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Encoded, Scores, Slice, TokenSequence
from worker.runners.paged import PagedRunner

__all__ = ["tiny"]  # a fixture, which pytest finds by its name here

FEW_PAGES = -(-WINDOW // PAGE)


@torch.no_grad()
def token_by_token(model: PreTrainedModel, context: Ids, tail: Ids) -> ContinuationScore:
    """Decode with the model's own cache, forced to say `tail`."""
    prompt = torch.tensor([context])
    more = (
        {"token_type_ids": torch.ones_like(prompt)} if isinstance(model, HrmTextForCausalLM) else {}
    )
    out = model(input_ids=prompt, use_cache=True, **more)
    total = 0.0
    is_greedy = True
    for place, token in enumerate(tail):
        logits = out.logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        is_greedy &= int(logits.argmax()) == token
        if place + 1 < len(tail):
            out = model(
                input_ids=torch.tensor([[token]]),
                past_key_values=out.past_key_values,
                use_cache=True,
            )
    return ContinuationScore(total, len(tail), is_greedy)


def check(model: PreTrainedModel, task: Score, scores: tuple[ContinuationScore, ...]) -> None:
    assert len(scores) == len(task.continuations)
    for tail, score in zip(task.continuations, scores, strict=True):
        expected = token_by_token(model, task.context, tail)  # type: ignore[arg-type]
        assert score.log_likelihood == pytest.approx(expected.log_likelihood, abs=2e-3)
        assert (score.num_tokens, score.is_greedy) == (expected.num_tokens, expected.is_greedy)


def tasks_of(runner: PagedRunner) -> list[Score]:
    """Several contexts, one of them twice and one the beginning of another; tails of 1 to 30
    tokens, one greedy."""
    long = ids(43, 0)
    (greedy,) = generate_all(
        runner, [Generate(long, Sampling(5, 0, temperature=0.0, ignore_eos=True))]
    )
    continuations = [ids(length, 10 + length) for length in (1, 17, 2, 30, 1, 9)]
    return [
        Score(long, (*continuations, tuple(greedy))),
        Score(ids(5, 1), tuple(continuations[:3])),
        Score(long[:24], (continuations[1], continuations[1][:6], ids(1, 7))),
        Score(long, (ids(12, 3), continuations[0])),
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch": 8, "step_tokens": 4096},
        {"max_batch": 8, "step_tokens": 8},
        {"max_batch": 3, "step_tokens": 32, "prefix_cache": False},
    ],
    ids=["in one step", "in many steps", "without reuse"],
)
def test_scores_equal_token_by_token_decoding(tiny: Model, options: dict[str, object]) -> None:
    """P8, X18: contexts over the step's budget, tails over many steps, contexts that share their
    beginning."""
    runner = load(tiny[0], **options)
    tasks = tasks_of(runner)
    for task, scores in zip(tasks, score_all(runner, tasks), strict=True):
        check(tiny[1], task, scores)


def test_scores_survive_preemption(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pages: answers that grow beside them push contexts out between two of their
    continuations."""
    kv_bytes = FEW_PAGES * PAGE * load(tiny[0])._net.kv_shape.bytes_per_token(torch.float32)
    runner = load(tiny[0], max_batch=8, step_tokens=12, kv_bytes=kv_bytes)
    assert runner.spec.num_pages == FEW_PAGES
    pushed: list[int] = []
    real = Scheduler._preempt

    def noted(scheduler: Scheduler, sequence: TokenSequence) -> None:
        if sequence.is_scoring and sequence.num_remaining == 0:
            pushed.append(len(sequence.scores))
        real(scheduler, sequence)

    monkeypatch.setattr(Scheduler, "_preempt", noted)
    sampling = Sampling(20, 0, temperature=0.0, ignore_eos=True)
    score = Score(ids(30, 4), tuple(ids(9, seed) for seed in range(20, 36)))
    emissions = run(
        runner,
        [Generate(ids(20, 1), sampling), Generate(ids(21, 2), sampling), score],
        [[], [], []],
    )
    (done,) = (item.ended for item in emissions if item.key == "2")
    assert isinstance(done, Done)
    check(tiny[1], score, end_of(done, Scored).scores)
    assert any(pushed), "no context gave way between two of its continuations"


class Counted:
    """A runner's network that notes the tokens of each forward and the rows of each call for
    logits."""

    def __init__(self, runner: PagedRunner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forwards: list[int] = []
        self.logit_rows: list[int] = []
        hidden = runner._net.hidden
        logits = runner._net.logits

        def counted_hidden(ids: Tensor, *rest: object) -> Tensor:
            self.forwards.append(len(ids))
            return hidden(ids, *rest)  # type: ignore[arg-type]

        def counted_logits(states: Tensor) -> Tensor:
            self.logit_rows.append(len(states))
            return logits(states)

        monkeypatch.setattr(runner._net, "hidden", counted_hidden)
        monkeypatch.setattr(runner._net, "logits", counted_logits)


def test_a_context_with_four_continuations_is_computed_once(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One forward for the context, one for its last token again and all tails, each without its
    last token."""
    runner = load(tiny[0])
    counted = Counted(runner, monkeypatch)
    task = Score(ids(41, 0), tuple(ids(length, length) for length in (3, 1, 8, 5)))
    check(tiny[1], task, score_all(runner, [task])[0])
    assert counted.forwards == [41, 1 + 2 + 0 + 7 + 4]


def test_a_context_that_comes_again_is_found(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole-prompt reuse in a prefix-LM, whole pages in a causal LM: later requests pay for their
    tails."""
    runner = load(tiny[0])
    counted = Counted(runner, monkeypatch)
    said: list[Emission] = []
    engine = Engine(runner, said.extend)
    tasks = [
        Score(ids(40, 0), (ids(6, 1),)),
        Score(ids(40, 0), (ids(9, 2), ids(4, 3))),
        Score(ids(40, 0), (ids(1, 4),)),
    ]
    for number, task in enumerate(tasks):
        engine.submit(SequenceWork(str(number), runner.encode(task), None))
        while engine.has_work:
            engine.step()
    for task, emission in zip(tasks, said, strict=True):
        assert isinstance(emission.ended, Done)
        check(tiny[1], task, end_of(emission.ended, Scored).scores)
    assert counted.forwards == [40, 1 + 5, 1 + 8 + 3, 1]


def test_logits_are_computed_for_all_tails_at_once_a_few_rows_at_a_time(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two contexts, five tails: 24 states in one call, or in slices that take no notice of where a
    tail ends."""
    runner = load(tiny[0])
    counted = Counted(runner, monkeypatch)
    tasks = [
        Score(ids(9, 0), (ids(7, 1), ids(1, 2), ids(4, 3))),
        Score(ids(5, 4), (ids(3, 5), ids(9, 6))),
    ]
    whole = score_all(runner, tasks)
    assert counted.logit_rows == [24]
    monkeypatch.setattr(scoring, "LOGIT_ROWS", 5)
    sliced = score_all(runner, tasks)
    assert counted.logit_rows == [24, 5, 5, 5, 5, 4]
    for task, one, other in zip(tasks, whole, sliced, strict=True):
        check(tiny[1], task, one)
        check(tiny[1], task, other)


def test_one_bidirectional_pass_would_leak(tmp_path: Path) -> None:
    """X18: in HRM-Text a pass that shows the continuation to the prompt scores it with itself in
    sight."""
    model = write_tiny(tmp_path)
    runner = load(tmp_path)
    task = Score(ids(20, 0), (ids(8, 1), ids(3, 2)))
    for tail, score in zip(task.continuations, score_all(runner, [task])[0], strict=True):
        whole = torch.tensor([[*task.context, *tail]])  # type: ignore[misc]
        with torch.no_grad():
            logits = (
                model(input_ids=whole, token_type_ids=torch.ones_like(whole)).logits[0].double()
            )
        shares = logits[19:-1].log_softmax(-1)
        leaked = sum(float(shares[at, token]) for at, token in enumerate(tail))
        expected = token_by_token(model, task.context, tail).log_likelihood  # type: ignore[arg-type]
        assert score.log_likelihood == pytest.approx(expected, abs=1e-4)
        assert abs(leaked - expected) > 1e-2


def test_the_longest_continuation_and_the_longest_context(tiny: Model) -> None:
    """A window reads all but the last token: 96 tokens follow one, 97 do not, and a context keeps
    its end."""
    runner = load(tiny[0])
    full = Score(ids(300, 0), (ids(WINDOW, 1), ids(2, 2)))
    encoded = runner.encode(full)
    assert (encoded.prompt_ids, encoded.num_truncated) == (full.context[-1:], 299)
    check(tiny[1], Score(encoded.prompt_ids, full.continuations), score_all(runner, [full])[0])
    with pytest.raises(InvalidRequest, match="97 tokens; at most 96") as refused:
        runner.encode(Score(ids(3, 0), (ids(WINDOW + 1, 1),)))
    assert refused.value.field == "continuations"
    partly = runner.encode(Score(ids(90, 0), (ids(17, 1),)))
    assert (partly.prompt_ids, partly.num_truncated) == (ids(90, 0)[10:], 10)


def test_one_continuation_that_has_no_number_spoils_its_slice_alone() -> None:
    """The first two continuations are of one context; the logits for the second one are broken."""
    pair = TokenSequence("pair", Encoded((1,), continuations=((2,), (3,))), None)
    single = TokenSequence("single", Encoded((1,), continuations=((4,),)), None)
    states = torch.eye(3, 8)

    def logits(some: Tensor) -> Tensor:
        rows = some.clone()
        rows[some[:, 1] == 1] = torch.nan
        return rows

    slices = [Slice(pair, num_continuations=2), Slice(single, num_continuations=1)]
    spoiled, sound = scoring.score_slices(logits, states, slices, "mine")
    assert isinstance(spoiled, WorkerFailed)
    assert isinstance(sound, Scores)
    assert len(sound.scores) == 1
