"""The tasks that a model does are known before it is loaded."""

from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification

from shared.settings.settings import ModelEntry, Settings
from tests.fixtures.one_shots import write_one_shot
from tests.fixtures.tiny_encoder import SHARED, write
from worker.engine.runner import RunnerOptions
from worker.host.facts import facts_of
from worker.runners.registry import load_runner


@pytest.mark.parametrize(
    "task", ["image-classification", "visual-question-answering", "text-to-speech", "translation"]
)
def test_one_task_of_a_network_that_does_it_in_one_call(tmp_path: Path, task: str) -> None:
    """By its architecture, or by its entry where that does several."""
    write_one_shot(task, tmp_path)
    options = {"task": task} if task == "translation" else {}
    entry = ModelEntry(id="m", path=str(tmp_path), runner="one-shot", options=options)
    assert facts_of(entry, Settings()).info.tasks == (task,)


@pytest.mark.parametrize("num_labels", [1, 3])
def test_a_classifier_of_one_label_ranks(tmp_path: Path, num_labels: int) -> None:
    config = BertConfig(num_labels=num_labels, **SHARED)
    write(tmp_path, BertForSequenceClassification, config)
    entry = ModelEntry(id="m", path=str(tmp_path))
    tasks = facts_of(entry, Settings()).info.tasks
    assert tasks == load_runner("auto", RunnerOptions(str(tmp_path))).spec.tasks
    assert ("text-ranking" in tasks) == (num_labels == 1)
