"""Vectors of language models are those of plain forwards, under every schedule."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import HrmTextForCausalLM, PreTrainedModel

from scripts.train.special_tokens import byte_tokenizer
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


def plain_mean(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Return the mean of the last hidden states of a plain transformers forward."""
    with torch.no_grad():
        out = model.base_model(torch.tensor([list(ids)]), use_cache=False)
    return out.last_hidden_state[0].mean(0)


def plain_means(model: PreTrainedModel, runner: Runner) -> list[Tensor]:
    """Return the mean of each of `TASKS`, by a plain forward over the runner's token ids."""
    return [plain_mean(model, runner.encode(task).prompt_ids) for task in TASKS]


def embed_alone(runner: Runner) -> list[bytes]:
    """Return the vector of each of `TASKS`, embedded by itself."""
    vectors: list[bytes] = []
    for task in TASKS:
        vectors += embed_all(runner, [task])
    return vectors


def check(vectors: Sequence[bytes], expected: Sequence[Tensor]) -> None:
    for vector, mean in zip(vectors, expected, strict=True):
        assert torch.tensor(unpack(vector)) == pytest.approx(mean, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("step_tokens", [256, 3])
def test_the_mean_of_a_plain_forward(
    causal: tuple[Path, PreTrainedModel], step_tokens: int
) -> None:
    """A vector is the mean of a plain forward, alone and beside others (B55).

    It is so in parts of less than a page, too. Its dimension is the hidden size.
    """
    path, model = causal
    runner = paged(path, step_tokens=step_tokens)
    expected = plain_means(model, runner)
    assert len(expected[0]) == model.config.hidden_size

    check(embed_all(runner, TASKS), expected)
    check(embed_alone(runner), expected)


def test_length_one(causal: tuple[Path, PreTrainedModel]) -> None:
    """A vector has length one where the task does not say otherwise."""
    path, model = causal
    runner = paged(path)
    task = Embed("Hello")

    vectors = embed_all(runner, [task])

    mean = plain_mean(model, runner.encode(task).prompt_ids)
    check(vectors, [mean / mean.norm()])


def test_beside_other_tasks_and_found_prefixes(causal: tuple[Path, PreTrainedModel]) -> None:
    """A text is computed whole even where its prefix is cached, and its pages serve other tasks.

    Cached keys and values bring no states to pool.
    """
    path, model = causal
    runner = paged(path)
    generate = Generate(TEXTS[1], Sampling(6, 0, temperature=0.0))
    score = Score(TEXTS[1], (" a", " b"))
    serving = Serving(runner)
    serving.finish([generate])
    serving.finish([TASKS[3], generate, score, TASKS[1], TASKS[1]])

    assert serving.said[0] == serving.said[2]
    assert serving.done[2].num_cached_tokens > 0
    for number, task in ((1, TASKS[3]), (4, TASKS[1]), (5, TASKS[1])):
        done = serving.done[number]
        assert done.finish_reason == "embed"
        assert done.num_cached_tokens == 0
        assert done.num_completion_tokens == 0
        vector = end_of(done, Embedded).vector
        check([vector], [plain_mean(model, runner.encode(task).prompt_ids)])


def test_a_text_that_gave_its_place_up_is_read_again(causal: tuple[Path, PreTrainedModel]) -> None:
    """A preempted text is computed anew: nothing that was pooled before counts twice."""
    path, model = causal
    runner = paged(path, max_batch=1, step_tokens=8)
    emissions: list[Emission] = []
    engine = Engine(runner, emissions.extend)
    text = runner.encode(Embed("A text of thirty-two characters.", normalize=False))
    engine.submit(SequenceWork("text", text, None, priority="bulk"))
    engine.step()
    [sequence] = engine.scheduler.running
    assert sequence.pooled is not None
    assert sequence.pooled.num_tokens == 8

    urgent = Generate("ab", Sampling(3, 0))
    engine.submit(
        SequenceWork("urgent", runner.encode(urgent), urgent.sampling, priority="interactive")
    )
    engine.step()
    assert sequence.pooled is None

    while engine.has_work:
        engine.step()
    [last] = [emission for emission in emissions if emission.key == "text"]
    check([end_of(last.ended, Embedded).vector], [plain_mean(model, text.prompt_ids)])


def test_too_long(causal: tuple[Path, PreTrainedModel]) -> None:
    """A text that is too long loses its end, with a count, or is refused with both numbers."""
    path, _ = causal
    runner = paged(path, context_window=16)

    encoded = runner.encode(Embed("abcdefghijklmnopqrst"))
    assert len(encoded.prompt_ids) == 16
    assert encoded.num_truncated == 4
    assert runner.decode(encoded.prompt_ids) == "abcdefghijklmnop"

    with pytest.raises(ContextExceeded, match="is 16 tokens; the text has 20") as caught:
        runner.encode(Embed("abcdefghijklmnopqrst", overflow="refuse"))
    assert caught.value.field == "input"
    with pytest.raises(InvalidRequest, match="no tokens"):
        runner.encode(Embed(""))
    with pytest.raises(InvalidRequest, match="input: token ids"):
        runner.encode(Embed((1, 264)))


def test_broken_states_fail_alone(causal: tuple[Path, PreTrainedModel]) -> None:
    """A text with a token whose embedding is NaN fails; the text beside it does not."""
    path, _ = causal
    runner = paged(path)
    embedding = runner.net.model.get_input_embeddings()  # type: ignore[attr-defined]
    [token] = byte_tokenizer()("!")["input_ids"]
    embedding.weight.data[token] = float("nan")

    good, bad = run(runner, [TASKS[0], Embed("No!")], [[], []])

    assert isinstance(bad.ended, Failed)
    assert bad.ended.code == "worker_failed"
    assert not isinstance(good.ended, Failed)


@pytest.mark.parametrize("step_tokens", [256, 3])
def test_hrm_text_reads_the_text_between_its_marks(tmp_path: Path, step_tokens: int) -> None:
    """A text is read between its special tokens, all of it in both directions.

    transformers reads what is marked as a prompt like that.
    """
    model: HrmTextForCausalLM = write_tiny(tmp_path)
    runner = paged(tmp_path, step_tokens=step_tokens)
    expected: list[Tensor] = []
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

    check(embed_all(runner, TASKS), expected)

    # A text that is too long keeps the special token at its end.
    short = paged(tmp_path, context_window=16).encode(Embed("abcdefghijklmnopqrst"))
    whole = runner.encode(Embed("abcdefghijklmnopqrst")).prompt_ids
    assert short.prompt_ids == (*whole[:15], whole[-1])
    assert short.num_truncated == len(whole) - 16


@pytest.mark.parametrize("is_causal", [False, True])
def test_act_brains(tmp_path: Path, is_causal: bool) -> None:
    """A vector is the mean of z_H of the last segment, the same alone and beside others."""
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    write_bundle(tmp_path, Net(vocab=264, max_seq_len=64, causal=is_causal), tokenizer="tokenizer")
    attention = "causal" if is_causal else "bidirectional"
    runner = load_runner("auto", options_for(tmp_path, max_batch=4, attention=attention))
    plain = load_runner("auto", options_for(tmp_path, attention="bidirectional"))
    assert isinstance(plain, ActRunner)

    vectors = embed_all(runner, TASKS)

    if is_causal:
        check(embed_alone(runner), [torch.tensor(unpack(vector)) for vector in vectors])
        return
    expected: list[Tensor] = []
    for task in TASKS:
        ids = runner.encode(task).prompt_ids
        row = torch.tensor([ids])
        length = torch.tensor([len(ids)])
        carry = plain.model.initial_carry(1, len(ids))
        with torch.no_grad():
            out = plain.model.forward_segment(row, length, carry)
        expected.append(out.hidden[0].mean(0))
    check(vectors, expected)
