"""The ACTv1 runner generates, halts and scores as plain one-row forwards of the same network."""

from pathlib import Path

import pytest
import torch

from scripts.train.special_tokens import byte_tokenizer
from shared.messages import Done, Generate, Sampling, Score
from tests.fixtures.worker.act_fixtures import Net, write_bundle
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.stepping import generate_all, run, score_all
from worker.models.errors import ModelFormatError
from worker.models.hrm_act import ActOutput
from worker.runners.hrm_act import ActRunner, Row
from worker.runners.registry import load_runner

PROMPTS = ["Hello", "x", "Once upon a time", "12 + 7"]
SEGMENTS = 4
NET = Net(vocab=264, max_seq_len=64, halt_max_steps=SEGMENTS)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("brain")
    byte_tokenizer().save_pretrained(path / "tokenizer")
    write_bundle(path, NET, tokenizer="tokenizer")
    return path


def load(path: Path, **options: object) -> ActRunner:
    runner = load_runner("auto", options_for(path, max_batch=4, **options))
    assert isinstance(runner, ActRunner)
    return runner


def alone(
    runner: ActRunner, ids: list[int], segments: int
) -> tuple[torch.Tensor, list[tuple[float, float]]]:
    """Run one unpadded row for `segments` segments.

    Return the logits of every position, and (q_halt, q_continue) of each segment.
    """
    model = runner.model
    row = torch.tensor([ids])
    length = torch.tensor([len(ids)])
    carry = model.initial_carry(1, len(ids))
    q_values: list[tuple[float, float]] = []
    with torch.no_grad():
        for _ in range(segments):
            out = model.forward_segment(row, length, carry)
            carry = out.carry
            q_values.append((float(out.q_halt), float(out.q_continue)))
        return model.logits(out.hidden)[0], q_values


def next_logits(runner: ActRunner, ids: list[int], segments: int) -> torch.Tensor:
    """Return the logits [vocab] of the token after a row."""
    logits, _ = alone(runner, ids, segments)
    return logits[-1]


def next_log_probs(runner: ActRunner, ids: list[int]) -> torch.Tensor:
    """Return the log-probabilities [vocab] of the token after a row, after one segment."""
    return next_logits(runner, ids, segments=1).double().log_softmax(-1)


@pytest.mark.parametrize(("mode", "segments"), [("compat", 1), ("max", 4)])
def test_greedy_batch_equals_one_row_forwards(bundle: Path, mode: str, segments: int) -> None:
    """Unequal rows are decoded together, each as if alone (T3, T5).

    Each token takes one segment, or all of them.
    """
    runner = load(bundle, segments=mode)
    greedy = Sampling(max_tokens=6, seed=0, temperature=0.0)
    tasks = [Generate(text, greedy) for text in PROMPTS]

    for task, answer in zip(tasks, generate_all(runner, tasks), strict=True):
        ids = list(runner.encode(task).prompt_ids)
        for token in answer:
            assert token == int(next_logits(runner, ids, segments).argmax())
            ids.append(token)


def test_q_halt_is_per_row(bundle: Path) -> None:
    """A row halts where its own q_halt exceeds its q_continue, whatever its batch mates do."""
    runner = load(bundle, segments="q_halt")
    rows: list[list[int]] = []
    gaps: list[float] = []
    for text in PROMPTS:
        row = list(runner.encode(Generate(text, Sampling(1, 0))).prompt_ids)
        _, [(q_halt, q_continue)] = alone(runner, row, segments=1)
        rows.append(row)
        gaps.append(q_halt - q_continue)
    gaps.sort()
    # From here on two rows halt after one segment, and two do not.
    runner.model.inner.q_head.bias.data[0] -= (gaps[1] + gaps[2]) / 2

    depths = [halting_segment(runner, row) for row in rows]
    assert len(set(depths)) > 1, "every row halts at the same segment, so this proves nothing"

    together, halts = runner.last_logits([Row(tuple(row), SEGMENTS) for row in rows])
    for logits, row, depth, halt in zip(together, rows, depths, halts, strict=True):
        expected = next_logits(runner, row, depth)
        torch.testing.assert_close(logits, expected, atol=5e-4, rtol=0.0)
        _, q_values = alone(runner, row, depth)
        assert (halt.q_halt, halt.q_continue) == pytest.approx(q_values[-1], abs=5e-4)
        assert halt.segments == depth


@pytest.mark.parametrize("mode", ["compat", "max", "q_halt"])
def test_each_token_tells_where_its_row_stopped(bundle: Path, mode: str) -> None:
    """A token that is asked for its log-probability has the q values and segments of its own run."""
    runner = load(bundle, segments=mode)
    greedy = Sampling(max_tokens=5, seed=0, temperature=0.0, logprobs=0)
    task = Generate(PROMPTS[0], greedy)
    ids = list(runner.encode(task).prompt_ids)
    depths = {"compat": 1, "max": SEGMENTS}
    emissions = run(runner, [task], [[]])

    for emission in emissions:
        [logprob] = emission.logprobs
        assert logprob.halt is not None
        depth = depths.get(mode) or halting_segment(runner, ids)
        _, q_values = alone(runner, ids, depth)
        assert (logprob.halt.q_halt, logprob.halt.q_continue) == pytest.approx(
            q_values[-1], abs=5e-4
        )
        assert logprob.halt.segments == depth
        ids += emission.ids
    done = emissions[-1].ended
    assert isinstance(done, Done)
    assert done.generated.q_values == ((logprob.halt.q_halt, logprob.halt.q_continue),)


def halting_segment(runner: ActRunner, row: list[int]) -> int:
    """Return the number of the first segment after which a row halts, the last one at most."""
    _, q_values = alone(runner, row, SEGMENTS)
    for number, (q_halt, q_continue) in enumerate(q_values, start=1):
        if q_halt > q_continue:
            return number
    return SEGMENTS


def test_strict_scoring_is_the_sum_of_generation_steps(bundle: Path) -> None:
    """Strict scoring takes one forward per token of a continuation (T4, A35, X18).

    A single pass over all of the continuation would see the future.
    """
    runner = load(bundle)
    tasks = [Score("Hello", (" world", "!")), Score("x", (" = 3",))]

    for task, scores in zip(tasks, score_all(runner, tasks), strict=True):
        encoded = runner.encode(task)
        for continuation, score in zip(encoded.continuations, scores, strict=True):
            ids = list(encoded.prompt_ids)
            expected = 0.0
            for token in continuation:
                expected += float(next_log_probs(runner, ids)[token])
                ids.append(token)
            assert score.log_likelihood == pytest.approx(expected, abs=1e-4)


def test_aios_compat_scoring_is_the_adapters_formula(bundle: Path) -> None:
    """Compatible scoring takes one pass over context and continuation (T4).

    A token's score is the log-softmax at the position before it.
    """
    runner = load(bundle)
    task = Score("Hello", (" world",), method="aios_compat")
    [[compat]] = score_all(runner, [task])
    [[strict]] = score_all(runner, [Score("Hello", (" world",), method="strict")])

    encoded = runner.encode(task)
    ids = [*encoded.prompt_ids, *encoded.continuations[0]]
    logits, _ = alone(runner, ids, segments=1)
    log_probs = logits.double().log_softmax(-1)
    expected = 0.0
    for position in range(len(encoded.prompt_ids), len(ids)):
        expected += float(log_probs[position - 1, ids[position]])

    assert compat.log_likelihood == pytest.approx(expected, abs=1e-4)
    # The network is bidirectional, so the two methods must differ.
    assert abs(compat.log_likelihood - strict.log_likelihood) > 1e-3


def test_a_bundle_without_a_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    """The refusal of a bundle without a tokenizer names the option that gives it one."""
    write_bundle(tmp_path, NET)
    with pytest.raises(ModelFormatError, match="--tokenizer-path"):
        load(tmp_path)


def test_rows_of_all_tails_of_a_step_run_together_and_once(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of all continuations run in batches, and equal rows only once.

    Four continuations of two contexts are 3 + 1 + 2 + 1 rows. Five of them are distinct, which
    makes two passes of at most four rows.
    """
    runner = load(bundle, step_tokens=1000)
    passes: list[int] = []
    forward = runner.model.forward_segment

    def count_rows(ids: torch.Tensor, *rest: torch.Tensor) -> ActOutput:
        passes.append(len(ids))
        return forward(ids, *rest)

    monkeypatch.setattr(runner.model, "forward_segment", count_rows)
    tasks = [Score((10, 11), ((5, 6, 7), (8,))), Score((30, 31, 32), ((5, 6), (9,)))]
    results = score_all(runner, tasks)
    assert passes == [4, 1]
    monkeypatch.undo()

    for task, scores in zip(tasks, results, strict=True):
        for continuation, score in zip(task.continuations, scores, strict=True):
            ids = list(task.context)
            expected = 0.0
            is_greedy = True
            for token in continuation:
                log_probs = next_log_probs(runner, ids)
                expected += float(log_probs[token])
                if int(log_probs.argmax()) != token:
                    is_greedy = False
                ids.append(token)
            assert score.log_likelihood == pytest.approx(expected, abs=1e-4)
            assert score.is_greedy == is_greedy
