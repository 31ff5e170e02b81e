"""NaN in a checkpoint.

A model that is broken does not start, and a prompt that meets the broken part fails alone.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.messages import Done, Failed, Generate, Sampling, Score, Scored, Solve
from shared.settings.settings import ModelEntry, Settings, SettingsError
from tests.fixtures.worker import puzzle_nets
from tests.fixtures.worker.broken_models import SICK, sick_all, sick_row, write_model
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.stepping import end_of, run
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import Runner
from worker.host.loading import load_models
from worker.runners.registry import load_runner

KINDS = ["causal", "hrm-text", "hrm-act"]
SOUND = [(20, 21, 22, 23, 24), (30, 31, 32), (40, 41, 42, 43, 44, 45, 46), (50, 51)]
SENTENCE = re.compile(r"Logits of 'mine' are not finite")


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """A kind, a healthy model of it, and the same with one broken embedding."""
    directory = tmp_path_factory.mktemp("pair")
    healthy = write_model(request.param, directory / "healthy")
    sick = sick_row(request.param, healthy, directory / "sick")
    return request.param, healthy, sick


def load(path: Path, **options: Any) -> Runner:
    return load_runner("auto", options_for(path, name="mine", max_batch=8, page_size=4, **options))


def generate(ids: tuple[int, ...], max_tokens: int = 8) -> Generate:
    return Generate(ids, Sampling(max_tokens, seed=0, temperature=0.0, ignore_eos=True))


def ids_of(emissions: list[Emission], key: str) -> list[int]:
    """Return all tokens of one work."""
    ids: list[int] = []
    for emission in emissions:
        if emission.key == key:
            ids += emission.ids
    return ids


def answers_of_healthy(
    path: Path, prompts: list[tuple[int, ...]], **options: Any
) -> list[list[int]]:
    """Return the healthy model's answer to each prompt by itself."""
    answers: list[list[int]] = []
    runner = load(path, **options)
    for prompt in prompts:
        emissions = run(runner, [generate(prompt)], [()])
        answer = ids_of(emissions, "0")
        assert SICK not in answer, "the sick model would fail here, too"
        answers.append(answer)
    return answers


class Conversation:
    """An engine that is given works one by one."""

    def __init__(self, runner: Runner) -> None:
        self.emissions: list[Emission] = []
        self.runner = runner
        self.engine = Engine(runner, self.emissions.extend)

    def submit(self, key: str, task: Generate | Score) -> None:
        sampling = task.sampling if isinstance(task, Generate) else None
        self.engine.submit(SequenceWork(key, self.runner.encode(task), sampling))

    def finish(self) -> None:
        while self.engine.has_work:
            self.engine.step()

    def ids(self, key: str) -> list[int]:
        return ids_of(self.emissions, key)

    def end(self, key: str) -> Done | Failed | None:
        for emission in self.emissions:
            if emission.key == key and emission.ended is not None:
                return emission.ended
        return None

    def assert_failed(self, key: str) -> None:
        end = self.end(key)
        assert isinstance(end, Failed)
        assert end.code == "worker_failed"
        assert SENTENCE.match(end.message)


@pytest.mark.parametrize("kv_dtype", ["auto", "bfloat16", "int8"])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_a_prompt_with_a_broken_token_fails_alone(
    pair: tuple[str, Path, Path], prefix_cache: bool, kv_dtype: str
) -> None:
    """Everybody else's answer is the healthy model's.

    The others run beside it, after it, and in the very pages it had.
    """
    _, healthy, sick = pair
    expected = answers_of_healthy(healthy, SOUND, kv_dtype=kv_dtype)
    conversation = Conversation(load(sick, prefix_cache=prefix_cache, kv_dtype=kv_dtype))

    conversation.submit("first", generate((60,), 1))
    for number, prompt in enumerate(SOUND[:3]):
        conversation.submit(f"beside {number}", generate(prompt))
    conversation.engine.step()
    # Its page is the next one to be given out.
    assert isinstance(conversation.end("first"), Done)

    for number in range(3):
        key = f"bad {number}"
        conversation.submit(key, generate((61, SICK, 62 + number), 4))
        conversation.engine.step()
        conversation.assert_failed(key)
        assert conversation.ids(key) == []
    conversation.finish()

    for number, prompt in enumerate(SOUND):
        conversation.submit(f"after {number}", generate(prompt))
    conversation.finish()

    for number in range(3):
        assert conversation.ids(f"beside {number}") == expected[number]
    for number in range(4):
        assert conversation.ids(f"after {number}") == expected[number]


def test_a_broken_context_cannot_be_scored_and_spoils_no_other(
    pair: tuple[str, Path, Path],
) -> None:
    """A broken context or continuation fails; the scores beside it are the healthy model's."""
    _, healthy, sick = pair
    continuations = ((70, 71, 72), (73,))
    sound = Score(SOUND[0], continuations)
    reference = Conversation(load(healthy))
    reference.submit("sound", sound)
    reference.finish()

    conversation = Conversation(load(sick))
    conversation.submit("bad context", Score((61, SICK, 62), continuations))
    conversation.submit("sound", sound)
    conversation.submit("bad continuation", Score(SOUND[1], ((70, SICK, 71), (73,))))
    conversation.finish()

    conversation.assert_failed("bad context")
    conversation.assert_failed("bad continuation")
    scores = end_of(conversation.end("sound"), Scored).scores
    expected_scores = end_of(reference.end("sound"), Scored).scores
    for score, expected in zip(scores, expected_scores, strict=True):
        assert score.log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-4)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
@pytest.mark.parametrize("pair", ["causal"], indirect=True)
def test_part_of_a_prompt_that_is_broken_is_never_known_as_a_prefix(
    pair: tuple[str, Path, Path], kv_dtype: str
) -> None:
    """A chunk that samples nothing is checked all the same.

    The pages before the broken chunk may be reused, none from it on.
    """
    _, healthy, sick = pair
    sound = tuple(range(20, 32))
    broken = (*sound, SICK, *range(100, 140))
    conversation = Conversation(load(sick, step_tokens=8, kv_dtype=kv_dtype))

    conversation.submit("bad", generate(broken))
    num_steps = 0
    while conversation.end("bad") is None:
        conversation.engine.step()
        num_steps += 1
    conversation.assert_failed("bad")
    # The second chunk of 8 tokens has the broken one; the prompt's end is far behind it.
    assert num_steps == 2

    cache = conversation.engine.scheduler.cache
    assert cache is not None
    _, num_known = cache.tree.match("", broken)
    assert num_known == 8

    conversation.submit("same", generate(broken))
    conversation.submit("other", generate((*sound, 99)))
    conversation.finish()
    conversation.assert_failed("same")
    expected = answers_of_healthy(healthy, [(*sound, 99)], kv_dtype=kv_dtype)
    assert [conversation.ids("other")] == expected
    assert cache.pages.num_free + cache.tree.num_pages == cache.pages.num_pages


@pytest.mark.parametrize("pair", ["hrm-act"], indirect=True)
def test_rows_are_padded_with_nothing_that_could_be_broken(
    pair: tuple[str, Path, Path], tmp_path: Path
) -> None:
    """Rows padded with token 0 are answered even where its embedding is not a number."""
    kind, healthy, _ = pair
    runner = load(sick_row(kind, healthy, tmp_path / "sick", token=0))
    tasks = [generate(prompt) for prompt in SOUND]

    emissions = run(runner, tasks, [(), (), (), ()])

    for number, expected in enumerate(answers_of_healthy(healthy, SOUND)):
        assert ids_of(emissions, str(number)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_checkpoint_is_refused_at_the_start(kind: str, tmp_path: Path) -> None:
    """The refusal is one line that names the model. The whole checkpoint loads."""
    whole = write_model(kind, tmp_path / "whole")
    broken = sick_all(kind, whole, tmp_path / "broken")

    [model] = load_models(settings_for(tmp_path / "whole"))
    assert model.info.id == "mine"
    with pytest.raises(SettingsError, match=r"model 'mine'.* not finite.* broken") as refused:
        load_models(settings_for(broken))
    assert len(str(refused.value).splitlines()) == 1


def settings_for(path: Path) -> Settings:
    return Settings(models=(ModelEntry(id="mine", path=str(path)),), max_batch_size=2, page_size=4)


def write_puzzle(path: Path, name: str, row: int) -> Path:
    """Write a Sudoku net with a NaN in one row of one of its tables."""
    net = puzzle_nets.Net()
    weights = puzzle_nets.random_weights(net)
    weights[name][row, 0] = torch.nan
    puzzle_nets.write_checkpoint(path, net, weights=weights)
    return path


def test_a_puzzle_with_a_broken_identifier_fails_alone(tmp_path: Path) -> None:
    """A broken identifier gives a failure, never a grid made of NaN."""
    runner = load(write_puzzle(tmp_path / "sudoku", "puzzle_emb.weights", 2))
    puzzles = [Solve("." * 81, identifier=identifier) for identifier in (0, 2, 1)]

    ends: dict[str, Done | Failed | None] = {}
    for emission in run(runner, puzzles, [(), (), ()]):
        ends[emission.key] = emission.ended

    assert isinstance(ends["0"], Done)
    assert isinstance(ends["2"], Done)
    failed = ends["1"]
    assert isinstance(failed, Failed)
    assert SENTENCE.match(failed.message)


@pytest.mark.parametrize("name", ["lm_head.weight", "q_head.weight"])
def test_a_broken_puzzle_network_is_refused_at_the_start(tmp_path: Path, name: str) -> None:
    """A NaN in either head of a puzzle network is found before anything is served."""
    path = write_puzzle(tmp_path / "sudoku", name, 0)
    with pytest.raises(SettingsError, match=r"model 'mine'.* not finite"):
        load_models(Settings(models=(ModelEntry(id="mine", path=str(path)),)))
