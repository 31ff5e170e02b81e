"""Scoring of continuations over pages.

The oracle decodes each continuation token by token with transformers' own cache.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import HrmTextForCausalLM, PreTrainedModel

from shared.errors import InvalidRequest, WorkerFailed
from shared.messages import ContinuationScore, Generate, Sampling, Score, Scored
from tests.fixtures.scored_models import PAGE, WINDOW, Ids, Model, ids, load, tiny
from tests.fixtures.tiny_hrm_text import write_tiny
from tests.fixtures.worker.stepping import end_of, generate_all, run, score_all
from worker.engine import scoring
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Encoded, Scores, Slice, TokenSequence
from worker.runners.paged import PagedRunner

# A fixture, which pytest finds by its name here.
__all__ = ["tiny"]

FEW_PAGES = -(-WINDOW // PAGE)


@torch.no_grad()
def token_by_token(model: PreTrainedModel, context: Ids, tail: Ids) -> ContinuationScore:
    """Decode with the model's own cache, forced to say `tail`."""
    prompt = torch.tensor([context])
    types = {}
    if isinstance(model, HrmTextForCausalLM):
        types = {"token_type_ids": torch.ones_like(prompt)}
    out = model(input_ids=prompt, use_cache=True, **types)

    total = 0.0
    is_greedy = True
    for number, token in enumerate(tail):
        if number > 0:
            # The token before this one is forced, whatever is likeliest.
            last = torch.tensor([[tail[number - 1]]])
            out = model(input_ids=last, past_key_values=out.past_key_values, use_cache=True)
        logits = out.logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        if int(logits.argmax()) != token:
            is_greedy = False
    return ContinuationScore(total, len(tail), is_greedy)


def check(model: PreTrainedModel, task: Score, scores: tuple[ContinuationScore, ...]) -> None:
    """Compare the scores of a task with the oracle's."""
    assert len(scores) == len(task.continuations)
    for tail, score in zip(task.continuations, scores, strict=True):
        expected = token_by_token(model, task.context, tail)  # type: ignore[arg-type]
        assert score.log_likelihood == pytest.approx(expected.log_likelihood, abs=2e-3)
        assert score.num_tokens == expected.num_tokens
        assert score.is_greedy == expected.is_greedy


def tasks_of(runner: PagedRunner) -> list[Score]:
    """Return tasks of several contexts, one of them twice and one the beginning of another.

    Their continuations have 1 to 30 tokens, and one of them is greedy.
    """
    long = ids(43, 0)
    sampling = Sampling(5, seed=0, temperature=0.0, ignore_eos=True)
    [greedy] = generate_all(runner, [Generate(long, sampling)])
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
    """P8, X18: Scores are those of token-by-token decoding.

    Contexts exceed the step's budget or share their beginning, and continuations take many steps.
    """
    path, model = tiny
    runner = load(path, **options)
    tasks = tasks_of(runner)

    for task, scores in zip(tasks, score_all(runner, tasks), strict=True):
        check(model, task, scores)


def test_scores_survive_preemption(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context that is preempted between two of its continuations has the same scores.

    Pages are few, and answers that grow beside it take them.
    """
    path, model = tiny
    bytes_per_token = load(path).net.kv_shape.bytes_per_token(torch.float32)
    kv_bytes = FEW_PAGES * PAGE * bytes_per_token
    # Beside sequences that decode it is a quarter.
    runner = load(path, max_batch=8, step_tokens=4 * 12, kv_bytes=kv_bytes)
    assert runner.spec.num_pages == FEW_PAGES

    num_scored_before: list[int] = []
    preempt = Scheduler.preempt

    def recorded(scheduler: Scheduler, sequence: TokenSequence) -> None:
        if sequence.is_scoring and sequence.num_remaining == 0:
            num_scored_before.append(len(sequence.scores))
        preempt(scheduler, sequence)

    monkeypatch.setattr(Scheduler, "preempt", recorded)
    sampling = Sampling(20, seed=0, temperature=0.0, ignore_eos=True)
    continuations = tuple(ids(9, seed) for seed in range(20, 36))
    score = Score(ids(30, 4), continuations)
    tasks = [Generate(ids(20, 1), sampling), Generate(ids(21, 2), sampling), score]

    emissions = run(runner, tasks, [[], [], []])

    [emission] = [emission for emission in emissions if emission.key == "2"]
    check(model, score, end_of(emission.ended, Scored).scores)
    assert any(num_scored_before), "no context gave way between two of its continuations"


class Counted:
    """Counts of the tokens of each forward, and of the rows of each call for logits."""

    def __init__(self, runner: PagedRunner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forwards: list[int] = []
        self.logit_rows: list[int] = []
        hidden = runner.net.hidden
        logits = runner.net.logits

        def counted_hidden(ids: Tensor, *rest: object) -> Tensor:
            self.forwards.append(len(ids))
            return hidden(ids, *rest)  # type: ignore[arg-type]

        def counted_logits(states: Tensor) -> Tensor:
            self.logit_rows.append(len(states))
            return logits(states)

        monkeypatch.setattr(runner.net, "hidden", counted_hidden)
        monkeypatch.setattr(runner.net, "logits", counted_logits)


def test_a_context_with_four_continuations_is_computed_once(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context has one forward, and all its continuations share another one."""
    path, model = tiny
    runner = load(path)
    counted = Counted(runner, monkeypatch)
    task = Score(ids(41, 0), (ids(3, 3), ids(1, 1), ids(8, 8), ids(5, 5)))

    [scores] = score_all(runner, [task])

    check(model, task, scores)
    # The context's last token again, and each continuation without its last token.
    assert counted.forwards == [41, 1 + 2 + 0 + 7 + 4]


def test_a_context_that_comes_again_is_found(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later requests with the same context compute only their continuations.

    A prefix-LM reuses the whole prompt, and a causal LM its whole pages.
    """
    path, model = tiny
    runner = load(path)
    counted = Counted(runner, monkeypatch)
    emissions: list[Emission] = []
    engine = Engine(runner, emissions.extend)
    tasks = [
        Score(ids(40, 0), (ids(6, 1),)),
        Score(ids(40, 0), (ids(9, 2), ids(4, 3))),
        Score(ids(40, 0), (ids(1, 4),)),
    ]

    for number, task in enumerate(tasks):
        engine.submit(SequenceWork(str(number), runner.encode(task), None))
        while engine.has_work:
            engine.step()

    for task, emission in zip(tasks, emissions, strict=True):
        check(model, task, end_of(emission.ended, Scored).scores)
    assert counted.forwards == [40, 1 + 5, 1 + 8 + 3, 1]


def test_logits_are_computed_for_all_tails_at_once_a_few_rows_at_a_time(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of all continuations are computed in one call, or in slices of `LOGIT_ROWS`.

    Two contexts have five continuations of 24 tokens, and a slice may begin within one of them.
    """
    path, model = tiny
    runner = load(path)
    counted = Counted(runner, monkeypatch)
    first = Score(ids(9, 0), (ids(7, 1), ids(1, 2), ids(4, 3)))
    second = Score(ids(5, 4), (ids(3, 5), ids(9, 6)))

    whole = score_all(runner, [first, second])
    assert counted.logit_rows == [24]

    monkeypatch.setattr(scoring, "LOGIT_ROWS", 5)
    sliced = score_all(runner, [first, second])
    assert counted.logit_rows == [24, 5, 5, 5, 5, 4]

    for first_scores, second_scores in (whole, sliced):
        check(model, first, first_scores)
        check(model, second, second_scores)


def test_one_bidirectional_pass_would_leak(tmp_path: Path) -> None:
    """X18: In HRM-Text, a pass that shows the continuation to the prompt gives another score.

    The model would predict a continuation with that continuation in sight.
    """
    model = write_tiny(tmp_path)
    runner = load(tmp_path)
    context = ids(20, 0)
    task = Score(context, (ids(8, 1), ids(3, 2)))

    [scores] = score_all(runner, [task])

    for tail, score in zip(task.continuations, scores, strict=True):
        whole = torch.tensor([[*context, *tail]])
        with torch.no_grad():
            out = model(input_ids=whole, token_type_ids=torch.ones_like(whole))
        # Row 19, of the context's last token, predicts the first token of the continuation.
        log_probs = out.logits[0, 19:-1].double().log_softmax(-1)
        leaked = 0.0
        for row, token in zip(log_probs, tail, strict=True):
            leaked += float(row[token])
        expected = token_by_token(model, context, tail).log_likelihood  # type: ignore[arg-type]
        assert score.log_likelihood == pytest.approx(expected, abs=1e-4)
        assert abs(leaked - expected) > 1e-2


def test_the_longest_continuation_and_the_longest_context(tiny: Model) -> None:
    """A context that is too long keeps its end, and a continuation that is too long is refused.

    A window reads all but the last token: 96 tokens fit behind a context of one, and 97 do not.
    """
    path, model = tiny
    runner = load(path)
    full = Score(ids(300, 0), (ids(WINDOW, 1), ids(2, 2)))
    encoded = runner.encode(full)
    assert encoded.prompt_ids == full.context[-1:]
    assert encoded.num_truncated == 299
    [scores] = score_all(runner, [full])
    check(model, Score(encoded.prompt_ids, full.continuations), scores)

    with pytest.raises(InvalidRequest, match="97 tokens; at most 96") as refused:
        runner.encode(Score(ids(3, 0), (ids(WINDOW + 1, 1),)))
    assert refused.value.field == "continuations"

    cut = runner.encode(Score(ids(90, 0), (ids(17, 1),)))
    assert cut.prompt_ids == ids(90, 0)[10:]
    assert cut.num_truncated == 10


def test_one_continuation_that_has_no_number_spoils_its_slice_alone() -> None:
    """Broken logits of one continuation fail its slice, and the slice beside it has its scores.

    The first slice has two continuations, of which the second is broken.
    """
    pair = TokenSequence("pair", Encoded((1,), continuations=((2,), (3,))), None)
    single = TokenSequence("single", Encoded((1,), continuations=((4,),)), None)
    states = torch.eye(3, 8)

    def logits(states: Tensor) -> Tensor:
        rows = states.clone()
        rows[states[:, 1] == 1] = torch.nan
        return rows

    slices = [Slice(pair, num_continuations=2), Slice(single, num_continuations=1)]

    spoiled, sound = scoring.score_slices(logits, states, slices, "mine")

    assert isinstance(spoiled, WorkerFailed)
    assert isinstance(sound, Scores)
    assert len(sound.scores) == 1
