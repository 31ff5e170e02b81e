"""The first step of every kind of runner, before its worker is ready (A116, B37), and the counts of
segments."""

from collections.abc import Sequence
from typing import Any

import pytest
from transformers import BertConfig, BertModel

from shared.messages import Generate, Sampling, Solve
from shared.settings.settings import ModelEntry, Settings
from shared.tasks.runner_table import PROXY, RUNNERS, WITHOUT_FILES
from tests.fixtures.one_shots import write_one_shot
from tests.fixtures.onnx_models import write_onnx
from tests.fixtures.tiny_diffusion import write_pipeline
from tests.fixtures.tiny_encoder import SHARED, write
from tests.fixtures.tiny_multimodal import write_llava
from tests.fixtures.worker import puzzle_nets
from tests.fixtures.worker.broken_models import write_model
from tests.fixtures.worker.options import options_for
from worker.engine.engine import Engine
from worker.engine.engines import AnyRunner
from worker.engine.request import SequenceWork
from worker.engine.runner import RunnerOptions
from worker.host import loading
from worker.runners.registry import load_runner


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    for kind in ("hrm-text", "hrm-act", "causal"):
        write_model(kind, root / kind)
    write(root / "encoder", BertModel, BertConfig(**SHARED))
    write_one_shot("image-classification", root / "one-shot")
    write_onnx("image-classification", root / "onnx")
    write_pipeline(root / "diffusion")
    write_llava(root / "multimodal")
    puzzle_nets.write_checkpoint(root / "hrm-puzzle", puzzle_nets.Net(halt_max_steps=3))

    paths = {}
    for kind in RUNNERS:
        paths[kind] = str(root / kind)
        if kind in WITHOUT_FILES:
            paths[kind] = kind
    return paths


@pytest.mark.parametrize("kind", [kind for kind in RUNNERS if kind != PROXY])
def test_one_step_is_done_while_loading(
    kind: str, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading a model of any kind does one step over one request, and measures it.

    An engine elsewhere is asked: `tests/worker/test_proxy_loading.py`.
    """
    batch_sizes: list[int] = []

    def load_watched(name: str, options: RunnerOptions) -> AnyRunner:
        runner = load_runner(name, options)
        method = {"sequence": "step", "task": "run"}[runner.spec.mechanism]
        do = getattr(runner, method)

        def recorded(batch: Sequence[Any], *rest: Any) -> Any:
            batch_sizes.append(len(batch))
            return do(batch, *rest)

        monkeypatch.setattr(runner, method, recorded)
        return runner

    monkeypatch.setattr(loading, "load_runner", load_watched)
    settings = Settings(
        models=(ModelEntry(id="m", path=paths[kind]),), device="cpu", context_window=64
    )

    [model] = loading.load_models(settings)

    assert model.info.runner == kind
    assert batch_sizes == [1]
    assert model.warm_up_s > 0
    assert model.load_s > 0


@pytest.mark.parametrize("segments", ["compat", "max"])
def test_segments_of_a_brain_are_counted_by_token(paths: dict[str, str], segments: str) -> None:
    """A brain counts the segments of each token: one in `compat`, and the most it may in `max`."""
    runner = load_runner("hrm-act", options_for(paths["hrm-act"], segments=segments))
    engine = Engine(runner, lambda emissions: None)
    task = Generate("ab", Sampling(max_tokens=4, seed=0, ignore_eos=True))
    engine.submit(SequenceWork("k", runner.encode(task), task.sampling))

    while engine.has_work:
        engine.step()

    segments_per_token = 1
    if segments == "max":
        segments_per_token = runner.max_segments  # type: ignore[attr-defined]
    assert engine.stats.num_tokens == 4
    assert engine.stats.num_settled == 4
    assert engine.stats.num_segments == 4 * segments_per_token


def test_segments_of_puzzles_are_counted_by_puzzle(paths: dict[str, str]) -> None:
    """A puzzle counts as many segments as it takes, up to its own `max_steps`."""
    runner = load_runner("hrm-puzzle", RunnerOptions(path=paths["hrm-puzzle"]))
    engine = Engine(runner, lambda emissions: None)
    trial = runner.spec.trial
    assert isinstance(trial, Solve)
    shorter = Solve(trial.puzzle, max_steps=2)
    longer = Solve(trial.puzzle, max_steps=3)
    engine.submit(SequenceWork("k0", runner.encode(shorter), None))
    engine.submit(SequenceWork("k1", runner.encode(longer), None))

    while engine.has_work:
        engine.step()

    assert engine.stats.num_segments == 2 + 3
    assert engine.stats.num_settled == 2
