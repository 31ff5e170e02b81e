"""The ACTv1 runner: generation, halting and both scorings, against plain one-row forwards of the
same network."""

from pathlib import Path

import pytest
import torch

from scripts.train.train_sample import byte_tokenizer
from shared.messages import Generate, Sampling, Score
from tests.fixtures.worker.act_fixtures import Net, write_bundle
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.stepping import generate_all, score_all
from worker.models.errors import ModelFormatError
from worker.models.hrm_act import ActOutput
from worker.runners.hrm_act import ActRunner
from worker.runners.registry import load_runner

PROMPTS = ["Hello", "x", "Once upon a time", "12 + 7"]
NET = Net(vocab=264, max_seq_len=64, halt_max_steps=4)


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
    """Logits of every position after `segments` segments of one unpadded row, and (q_halt,
    q_continue) of each."""
    model = runner._model
    row = torch.tensor([ids])
    length = torch.tensor([len(ids)])
    carry = model.initial_carry(1, len(ids))
    q = []
    with torch.no_grad():
        for _ in range(segments):
            out = model.forward_segment(row, length, carry)
            carry = out.carry
            q.append((float(out.q_halt), float(out.q_continue)))
        return model.logits(out.hidden)[0], q


@pytest.mark.parametrize(("mode", "segments"), [("compat", 1), ("max", 4)])
def test_greedy_batch_equals_one_row_forwards(bundle: Path, mode: str, segments: int) -> None:
    """T3, T5: unequal rows decoded together, in one segment a token or in all of them."""
    runner = load(bundle, segments=mode)
    tasks = [Generate(text, Sampling(max_tokens=6, seed=0, temperature=0.0)) for text in PROMPTS]
    for task, got in zip(tasks, generate_all(runner, tasks), strict=True):
        ids = list(runner.encode(task).prompt_ids)
        for token in got:
            assert token == int(alone(runner, ids, segments)[0][-1].argmax())
            ids.append(token)


def test_q_halt_is_per_row(bundle: Path) -> None:
    """A row halts where its own q_halt exceeds its q_continue, whatever its batch mates do."""
    runner = load(bundle, segments="q_halt")
    bias = runner._model.inner.q_head.bias
    rows = [list(runner.encode(Generate(text, Sampling(1, 0))).prompt_ids) for text in PROMPTS]
    gaps = sorted(q[0] - q[1] for row in rows for q in alone(runner, row, 1)[1])
    bias.data[0] -= (gaps[1] + gaps[2]) / 2  # two rows halt after one segment, two do not
    halts = []
    for row in rows:
        q = alone(runner, row, 4)[1]
        halts.append(next((i + 1 for i, (halt, go) in enumerate(q) if halt > go), 4))
    assert len(set(halts)) > 1, "every row halts at the same segment, so this proves nothing"
    together = runner._last_logits([tuple(row) for row in rows])
    for logits, row, halt in zip(together, rows, halts, strict=True):
        torch.testing.assert_close(logits, alone(runner, row, halt)[0][-1], atol=5e-4, rtol=0.0)


def test_strict_scoring_is_the_sum_of_generation_steps(bundle: Path) -> None:
    """T4, A35, X18: one forward per continuation prefix; a single pass over all of it would see the
    future."""
    runner = load(bundle)
    tasks = [Score("Hello", (" world", "!")), Score("x", (" = 3",))]
    for task, scores in zip(tasks, score_all(runner, tasks), strict=True):
        encoded = runner.encode(task)
        for tail, score in zip(encoded.continuations, scores, strict=True):
            ids = list(encoded.prompt_ids)
            expected = 0.0
            for token in tail:
                expected += float(alone(runner, ids, 1)[0][-1].double().log_softmax(-1)[token])
                ids.append(token)
            assert score.log_likelihood == pytest.approx(expected, abs=1e-4)


def test_aios_compat_scoring_is_the_adapters_formula(bundle: Path) -> None:
    """T4: one pass over context + continuation, log-softmax at the position before each token."""
    runner = load(bundle)
    strict, compat = (
        score_all(runner, [Score("Hello", (" world",), method=m)])[0][0]
        for m in ("strict", "aios_compat")
    )  # type: ignore[arg-type]
    encoded = runner.encode(Score("Hello", (" world",), method="aios_compat"))
    ids = [*encoded.prompt_ids, *encoded.continuations[0]]
    logits = alone(runner, ids, 1)[0].double().log_softmax(-1)
    expected = sum(
        float(logits[at - 1, ids[at]]) for at in range(len(encoded.prompt_ids), len(ids))
    )
    assert compat.log_likelihood == pytest.approx(expected, abs=1e-4)
    assert abs(compat.log_likelihood - strict.log_likelihood) > 1e-3, (
        "bidirectional: the two must differ"
    )


def test_a_bundle_without_a_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    write_bundle(tmp_path, NET)
    with pytest.raises(ModelFormatError, match="--tokenizer-path"):
        load(tmp_path)


def test_rows_of_all_tails_of_a_step_run_together_and_once(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strict: 4 tails of two contexts are 3 + 1 + 2 + 1 rows, 5 of them distinct: two passes of at
    most 4 rows."""
    runner = load(bundle, step_tokens=1000)
    passes = list[int]()
    forward = runner._model.forward_segment

    def counted(ids: torch.Tensor, *rest: torch.Tensor) -> ActOutput:
        passes.append(len(ids))
        return forward(ids, *rest)

    monkeypatch.setattr(runner._model, "forward_segment", counted)
    tasks = [Score((10, 11), ((5, 6, 7), (8,))), Score((30, 31, 32), ((5, 6), (9,)))]
    found = score_all(runner, tasks)
    assert passes == [4, 1]
    monkeypatch.undo()
    for task, scores in zip(tasks, found, strict=True):
        for tail, score in zip(task.continuations, scores, strict=True):
            rows = [[*task.context, *tail[:count]] for count in range(len(tail))]  # type: ignore[list-item]
            log_probs = [alone(runner, row, 1)[0][-1].double().log_softmax(-1) for row in rows]  # type: ignore[arg-type]
            expected = sum(float(row[token]) for row, token in zip(log_probs, tail, strict=True))  # type: ignore[arg-type]
            assert score.log_likelihood == pytest.approx(expected, abs=1e-4)
            assert score.is_greedy == all(
                int(row.argmax()) == token for row, token in zip(log_probs, tail, strict=True)
            )
