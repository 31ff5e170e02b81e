"""Models of all modalities in turn, of which a worker may hold only some in memory."""

from pathlib import Path

import pytest

from scripts.bench.mix import mix
from shared.settings.models import ModelEntry
from tests.fixtures.one_shots import write_one_shot
from tests.fixtures.tiny_diffusion import write_pipeline
from tests.fixtures.worker.broken_models import write_model

ONE_SHOTS = (
    "image-classification",
    "object-detection",
    "audio-classification",
    "automatic-speech-recognition",
    "text-to-speech",
    "question-answering",
    "time-series-forecasting",
)
SECONDS = 15.0
MOST = 3


@pytest.fixture
def entries(tmp_path: Path) -> list[ModelEntry]:
    """Return ten tiny models of text, images, sounds and series."""
    for task in ONE_SHOTS:
        write_one_shot(task, tmp_path / task)
    write_pipeline(tmp_path / "diffusion")
    write_model("causal", tmp_path / "causal")
    write_model("hrm-text", tmp_path / "hrm-text")
    paths = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    return [ModelEntry(id=path.name, path=str(path)) for path in paths]


async def test_more_models_than_fit_come_and_go_and_nothing_fails(
    entries: list[ModelEntry],
) -> None:
    """D76, D80, D100: no request fails, none is freed in use, and no more are in memory than may."""
    assert len(entries) == 10

    tally = await mix(entries, most=MOST, seconds=SECONDS, at_once=4, watermark=1.0)

    assert not tally.failures, tally.lines()
    assert tally.done.keys() == {"text", "image", "audio", "series"}
    assert tally.num_in_use == 0
    assert tally.most_loaded <= MOST
    # Each model was in memory at least once, and all but the last ones had to go again.
    assert tally.num_loads >= len(entries)
    assert tally.num_evicted == tally.num_loads - MOST
