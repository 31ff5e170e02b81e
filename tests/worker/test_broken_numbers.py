"""NaN in a checkpoint: a model that is broken does not start, and a prompt that meets the broken
part fails alone."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.messages import Done, Failed, Generate, Sampling, Score, Scored, Solve
from shared.settings.settings import ModelEntry, Settings, SettingsError
from tests.fixtures.worker import sapient_fixtures
from tests.fixtures.worker.broken_models import SICK, sick_all, sick_row, write_model
from tests.fixtures.worker.stepping import end_of, run
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import Runner, RunnerOptions
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
    place = tmp_path_factory.mktemp("pair")
    healthy = write_model(request.param, place / "healthy")
    return request.param, healthy, sick_row(request.param, healthy, place / "sick")


def load(path: Path, **options: Any) -> Runner:
    return load_runner(
        "auto", RunnerOptions(str(path), name="mine", max_batch=8, page_size=4, **options)
    )


def generate(ids: tuple[int, ...], max_tokens: int = 8) -> Generate:
    return Generate(ids, Sampling(max_tokens, seed=0, temperature=0.0, ignore_eos=True))


def alone(path: Path, prompts: list[tuple[int, ...]], max_tokens: int = 8) -> list[list[int]]:
    """What the healthy model says to each prompt by itself."""
    said = []
    runner = load(path)
    for prompt in prompts:
        emissions = run(runner, [generate(prompt, max_tokens)], [()])
        said.append([token for item in emissions for token in item.ids])
    assert all(SICK not in ids for ids in said)
    return said


class Talk:
    """An engine that is given works one by one."""

    def __init__(self, runner: Runner) -> None:
        self.said: list[Emission] = []
        self.runner = runner
        self.engine = Engine(runner, self.said.extend)

    def submit(self, key: str, task: Generate | Score) -> None:
        sampling = task.sampling if isinstance(task, Generate) else None
        self.engine.submit(SequenceWork(key, self.runner.encode(task), sampling))

    def finish(self) -> None:
        while self.engine.has_work:
            self.engine.step()

    def ids(self, key: str) -> list[int]:
        return [token for item in self.said if item.key == key for token in item.ids]

    def end(self, key: str) -> Done | Failed | None:
        return next(
            (item.ended for item in self.said if item.key == key and item.ended is not None), None
        )

    def has_failed(self, key: str) -> bool:
        end = self.end(key)
        return (
            isinstance(end, Failed)
            and end.code == "worker_failed"
            and bool(SENTENCE.match(end.message))
        )


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_a_prompt_with_a_broken_token_fails_alone(
    pair: tuple[str, Path, Path], prefix_cache: bool
) -> None:
    """Beside it, behind it and in the very pages it had: everybody else's answer is the healthy
    model's."""
    _, healthy, sick = pair
    expected = alone(healthy, SOUND)
    talk = Talk(load(sick, prefix_cache=prefix_cache))
    talk.submit("first", generate((60,), 1))
    for number, prompt in enumerate(SOUND[:3]):
        talk.submit(f"beside {number}", generate(prompt))
    talk.engine.step()
    assert isinstance(talk.end("first"), Done), "its page is the next one to be given out"
    for number in range(3):
        talk.submit(f"bad {number}", generate((61, SICK, 62 + number), 4))
        talk.engine.step()
        assert talk.has_failed(f"bad {number}")
        assert talk.ids(f"bad {number}") == []
    talk.finish()
    for number, prompt in enumerate(SOUND):
        talk.submit(f"behind {number}", generate(prompt))
    talk.finish()
    assert [talk.ids(f"beside {number}") for number in range(3)] == expected[:3]
    assert [talk.ids(f"behind {number}") for number in range(4)] == expected


def test_a_broken_context_cannot_be_scored_and_spoils_no_other(
    pair: tuple[str, Path, Path],
) -> None:
    _, healthy, sick = pair
    continuations = ((70, 71, 72), (73,))
    sound = Score(SOUND[0], continuations)
    expected = Talk(load(healthy))
    expected.submit("sound", sound)
    expected.finish()
    talk = Talk(load(sick))
    talk.submit("bad", Score((61, SICK, 62), continuations))
    talk.submit("sound", sound)
    talk.submit("bad tail", Score(SOUND[1], ((70, SICK, 71), (73,))))
    talk.finish()
    assert talk.has_failed("bad") and talk.has_failed("bad tail")
    want = expected.end("sound")
    got = talk.end("sound")
    assert isinstance(want, Done) and isinstance(got, Done)
    for one, other in zip(end_of(want, Scored).scores, end_of(got, Scored).scores, strict=True):
        assert other.log_likelihood == pytest.approx(one.log_likelihood, abs=1e-4)


@pytest.mark.parametrize("pair", ["causal"], indirect=True)
def test_part_of_a_prompt_that_is_broken_is_never_known_as_a_prefix(
    pair: tuple[str, Path, Path],
) -> None:
    """A chunk samples nothing by which it would fail; what was sound before it may be used, nothing
    behind it."""
    _, healthy, sick = pair
    sound = tuple(range(20, 32))
    broken = (*sound, SICK, *range(100, 140))
    talk = Talk(load(sick, step_tokens=8))
    talk.submit("bad", generate(broken))
    steps = 0
    while talk.end("bad") is None:
        talk.engine.step()
        steps += 1
    assert talk.has_failed("bad")
    assert steps == 2, "it fails with the chunk that has the broken token, not at the prompt's end"
    cache = talk.engine._scheduler._cache
    assert cache is not None
    assert cache.tree.match("", broken)[1] == 8
    talk.submit("same", generate(broken))
    talk.submit("other", generate((*sound, 99)))
    talk.finish()
    assert talk.has_failed("same")
    assert talk.ids("other") == alone(healthy, [(*sound, 99)])[0]
    assert cache.pages.num_free + cache.tree.num_pages == cache.pages.num_pages


@pytest.mark.parametrize("pair", ["hrm-act"], indirect=True)
def test_rows_are_padded_with_nothing_that_could_be_broken(
    pair: tuple[str, Path, Path], tmp_path: Path
) -> None:
    """Token 0 is as good a padding as any, until its embedding is not a number."""
    kind, healthy, _ = pair
    runner = load(sick_row(kind, healthy, tmp_path / "sick", token=0))
    emissions = run(runner, [generate(prompt) for prompt in SOUND], [()] * len(SOUND))
    said = [
        [token for item in emissions if item.key == str(number) for token in item.ids]
        for number in range(4)
    ]
    assert said == alone(healthy, SOUND)


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_checkpoint_is_refused_at_the_start(kind: str, tmp_path: Path) -> None:
    """One sentence that names the model; nothing is served, so nothing can be said with it."""
    broken = sick_all(kind, write_model(kind, tmp_path / "whole"), tmp_path / "broken")
    for path, is_sound in ((tmp_path / "whole", True), (broken, False)):
        settings = Settings(
            models=(ModelEntry(id="mine", path=str(path)),), max_batch_size=2, page_size=4
        )
        if is_sound:
            assert [model.info.id for model in load_models(settings)] == ["mine"]
            continue
        with pytest.raises(SettingsError, match=r"model 'mine'.* not finite.* broken") as refused:
            load_models(settings)
        assert len(str(refused.value).splitlines()) == 1


def write_puzzle(path: Path, name: str, row: int) -> Path:
    """A Sudoku net with a NaN in one row of one of its tables."""
    net = sapient_fixtures.Net()
    weights = sapient_fixtures.random_weights(net)
    weights[name][row, 0] = torch.nan
    sapient_fixtures.write_checkpoint(path, net, weights=weights)
    return path


def test_a_puzzle_with_a_broken_identifier_fails_alone(tmp_path: Path) -> None:
    """Never a grid made of NaN."""
    runner = load(write_puzzle(tmp_path / "sudoku", "puzzle_emb.weights", 2))
    puzzles = [Solve("." * 81, identifier=identifier) for identifier in (0, 2, 1)]
    ends = {item.key: item.ended for item in run(runner, puzzles, [()] * 3)}
    assert [type(ends[str(number)]).__name__ for number in range(3)] == ["Done", "Failed", "Done"]
    failed = ends["1"]
    assert isinstance(failed, Failed) and SENTENCE.match(failed.message)


@pytest.mark.parametrize("name", ["lm_head.weight", "q_head.weight"])
def test_a_broken_puzzle_network_is_refused_at_the_start(tmp_path: Path, name: str) -> None:
    path = write_puzzle(tmp_path / "sudoku", name, 0)
    with pytest.raises(SettingsError, match=r"model 'mine'.* not finite"):
        load_models(Settings(models=(ModelEntry(id="mine", path=str(path)),)))
