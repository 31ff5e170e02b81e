"""Vectors of language models against plain forwards of the same networks, under every schedule."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import HrmTextForCausalLM, PreTrainedModel

from scripts.train.train_sample import byte_tokenizer
from shared.errors import ContextExceeded, InvalidRequest
from shared.messages import Embed, Embedded, Failed, Generate, Sampling, Score
from shared.tasks.vectors import unpack
from tests.fixtures.tiny_hrm_text import write_tiny
from tests.fixtures.worker.act_fixtures import Net, write_bundle
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.stepping import Serving, embed_all, end_of, run
from tests.fixtures.worker.tiny_causal import gpt2, mistral, write
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import Runner, RunnerOptions
from worker.runners.hrm_act import ActRunner
from worker.runners.paged import PagedRunner
from worker.runners.registry import load_runner

TEXTS = ("Hello", "Once upon a time there was", "x", "Once upon a time", "The capital of France is")
TASKS = [Embed(text, normalize=False) for text in TEXTS]
PAGE = 4


@pytest.fixture(scope="module", params=[gpt2, mistral], ids=["gpt2", "mistral"])
def causal(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PreTrainedModel]:
    path = tmp_path_factory.mktemp("causal")
    return path, write(request.param, path)


def paged(path: Path, **options: object) -> PagedRunner:
    fitted = {"max_batch": 4, "page_size": PAGE, **options}
    runner = load_runner("auto", RunnerOptions(path=str(path), **fitted))  # type: ignore[arg-type]
    assert isinstance(runner, PagedRunner)
    return runner


def own_mean(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """The mean of the last hidden states of a plain transformers forward."""
    with torch.no_grad():
        return (
            model.base_model(torch.tensor([list(ids)]), use_cache=False)
            .last_hidden_state[0]
            .mean(0)
        )


def check(runner: Runner, vectors: Sequence[bytes], expected: Sequence[Tensor]) -> None:
    for vector, own in zip(vectors, expected, strict=True):
        assert torch.tensor(unpack(vector)) == pytest.approx(own, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("step_tokens", [256, 3])
def test_the_mean_of_a_plain_forward(
    causal: tuple[Path, PreTrainedModel], step_tokens: int
) -> None:
    """B55: alone, beside each other, and in parts of less than a page; the dimension is the hidden
    size."""
    path, model = causal
    runner = paged(path, step_tokens=step_tokens)
    expected = [own_mean(model, runner.encode(task).prompt_ids) for task in TASKS]
    assert len(expected[0]) == model.config.hidden_size
    check(runner, embed_all(runner, TASKS), expected)
    check(runner, [embed_all(runner, [task])[0] for task in TASKS], expected)


def test_length_one(causal: tuple[Path, PreTrainedModel]) -> None:
    runner = paged(causal[0])
    [vector] = embed_all(runner, [Embed("Hello")])
    own = own_mean(causal[1], runner.encode(Embed("Hello")).prompt_ids)
    check(runner, [vector], [own / own.norm()])


def test_beside_other_tasks_and_found_prefixes(causal: tuple[Path, PreTrainedModel]) -> None:
    """Keys and values that are found bring no states: the text is read again, and what it leaves
    serves the others."""
    path, model = causal
    runner = paged(path)
    prompt = Generate(TEXTS[1], Sampling(6, 0, temperature=0.0))
    serving = Serving(runner)
    serving.finish([prompt])
    serving.finish([TASKS[3], prompt, Score(TEXTS[1], (" a", " b")), TASKS[1], TASKS[1]])
    assert serving.said[0] == serving.said[2]
    assert serving.done[2].num_cached_tokens > 0
    for number, text in ((1, TEXTS[3]), (4, TEXTS[1]), (5, TEXTS[1])):
        end = serving.done[number]
        assert (end.finish_reason, end.num_cached_tokens, end.num_completion_tokens) == (
            "embed",
            0,
            0,
        )
        check(
            runner,
            [end_of(end, Embedded).vector],
            [own_mean(model, runner.encode(Embed(text)).prompt_ids)],
        )


def test_a_text_that_gave_its_place_up_is_read_again(causal: tuple[Path, PreTrainedModel]) -> None:
    """Nothing of what was pooled before counts twice."""
    path, model = causal
    runner = paged(path, max_batch=1, step_tokens=8)
    task = Embed("A text of thirty-two characters.", normalize=False)
    said = list[Emission]()
    engine = Engine(runner, said.extend)
    engine.submit(SequenceWork("text", runner.encode(task), None, priority="bulk"))
    engine.step()
    [row] = engine._scheduler._running
    assert row.pooled is not None and row.pooled.num_tokens == 8
    urgent = Generate("ab", Sampling(3, 0))
    engine.submit(
        SequenceWork("urgent", runner.encode(urgent), urgent.sampling, priority="interactive")
    )
    engine.step()
    assert row.pooled is None
    while engine.has_work:
        engine.step()
    [end] = [item.ended for item in said if item.key == "text" and item.ended is not None]
    check(runner, [end_of(end, Embedded).vector], [own_mean(model, runner.encode(task).prompt_ids)])


def test_too_long(causal: tuple[Path, PreTrainedModel]) -> None:
    """It loses its end, and says so, or is refused with both numbers."""
    runner = paged(causal[0], context_window=16)
    encoded = runner.encode(Embed("abcdefghijklmnopqrst"))
    assert (len(encoded.prompt_ids), encoded.num_truncated) == (16, 4)
    assert runner.decode(encoded.prompt_ids) == "abcdefghijklmnop"
    with pytest.raises(ContextExceeded, match="is 16 tokens; the text has 20") as caught:
        runner.encode(Embed("abcdefghijklmnopqrst", overflow="refuse"))
    assert caught.value.field == "input"
    with pytest.raises(InvalidRequest, match="no tokens"):
        runner.encode(Embed(""))
    with pytest.raises(InvalidRequest, match="input: token ids"):
        runner.encode(Embed((1, 264)))


def test_broken_states_fail_alone(causal: tuple[Path, PreTrainedModel]) -> None:
    runner = paged(causal[0])
    embedding = runner._net.model.get_input_embeddings()  # type: ignore[attr-defined]
    embedding.weight.data[byte_tokenizer()("!")["input_ids"][0]] = float("nan")
    good, bad = (item.ended for item in run(runner, [TASKS[0], Embed("No!")], [[], []]))
    assert isinstance(bad, Failed) and bad.code == "worker_failed"
    assert not isinstance(good, Failed)


@pytest.mark.parametrize("step_tokens", [256, 3])
def test_hrm_text_reads_the_text_between_its_marks(tmp_path: Path, step_tokens: int) -> None:
    """All of it in both directions, as transformers does for what is marked as prompt."""
    model: HrmTextForCausalLM = write_tiny(tmp_path)
    runner = paged(tmp_path, step_tokens=step_tokens)
    expected = []
    for task in TASKS:
        ids = runner.encode(task).prompt_ids
        assert ids == runner.encode(Generate(task.text, Sampling(1, 0))).prompt_ids
        with torch.no_grad():
            out = model.model(
                torch.tensor([ids]),
                token_type_ids=torch.ones(1, len(ids), dtype=torch.int64),
                use_cache=False,
            )
        expected.append(out.last_hidden_state[0].mean(0))
    check(runner, embed_all(runner, TASKS), expected)
    short = paged(tmp_path, context_window=16).encode(Embed("abcdefghijklmnopqrst"))
    whole = runner.encode(Embed("abcdefghijklmnopqrst")).prompt_ids
    assert (short.prompt_ids, short.num_truncated) == ((*whole[:15], whole[-1]), len(whole) - 16)


@pytest.mark.parametrize("is_causal", [False, True])
def test_act_brains(tmp_path: Path, is_causal: bool) -> None:
    """z_H of the last segment: of each row alone, the same as beside others."""
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    write_bundle(tmp_path, Net(vocab=264, max_seq_len=64, causal=is_causal), tokenizer="tokenizer")
    attention = "causal" if is_causal else "bidirectional"
    runner = load_runner("auto", options_for(tmp_path, max_batch=4, attention=attention))
    plain = load_runner("auto", options_for(tmp_path, attention="bidirectional"))
    assert isinstance(plain, ActRunner)
    vectors = embed_all(runner, TASKS)
    if is_causal:
        check(
            runner,
            [embed_all(runner, [task])[0] for task in TASKS],
            [torch.tensor(unpack(item)) for item in vectors],
        )
        return
    expected = []
    for task in TASKS:
        ids = runner.encode(task).prompt_ids
        with torch.no_grad():
            row = plain._model.forward_segment(
                torch.tensor([ids]),
                torch.tensor([len(ids)]),
                plain._model.initial_carry(1, len(ids)),
            )
        expected.append(row.hidden[0].mean(0))
    check(runner, vectors, expected)
