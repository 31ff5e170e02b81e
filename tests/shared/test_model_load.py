"""The numbers of a model: all that is said of them is said in their one list, and everything else
reads it."""

import pytest

from scripts.cli.watch.screen import View, screen
from shared.fleet.presence import Fleet
from shared.fleet.snapshot import Snapshot, Worker, WorkerModel
from shared.fleet.sums import of_workers
from shared.messages import ModelInfo, WorkerInfo, decode_worker, encode
from shared.telemetry.metrics import Metrics, WorkerMetrics
from shared.telemetry.model_load import NUMBERS, ModelLoad
from worker.host.metrics_reporter import _MEASURES

MODEL = ModelInfo("m", "echo", "found", 9, 9, 4)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_measured_and_told_wherever_its_field_says(name: str) -> None:
    number = NUMBERS[name]
    loads = [ModelLoad("m", **{name: value}) for value in (7, 5)]  # type: ignore[arg-type]
    workers = tuple(WorkerInfo(load.id, "ready", (MODEL,), loads=(load,)) for load in loads)
    assert name in _MEASURES
    assert [decode_worker(encode(worker)) for worker in workers] == list(workers)
    assert (name in WorkerMetrics().by_model) == (number.metric is not None)
    assert number.meaning.endswith(".")
    if number.total is not None:
        assert name in Metrics().fleet.by_name
        expected = 12 if number.total.how == "sum" else 7
        assert of_workers(Fleet(workers, {"m": MODEL}))[name] == {("m",): expected}


def test_nothing_else_is_measured() -> None:
    assert _MEASURES.keys() == NUMBERS.keys()


def test_columns_are_shown() -> None:
    lookups = {"prefix_lookups": 4, "prefix_hits": 1}
    steps = {"steps_done": 1, "steps_total": 2}
    model = WorkerModel(
        "m", running=3, max_batch=4, tokens_per_s=1500.0, step_s=0.25, **lookups, **steps
    )
    told = Snapshot("now", "ready", workers=(Worker("w", "ready", "p", 1.0, 0, 0, 0, 0, (model,)),))
    title, row = (line for line in screen(View(told), 300) if line.startswith(("WORKER", "w ")))
    cells = dict(zip(title.split(), row.split(), strict=False))
    assert {name: cells[name] for name in ("BATCH", "DONE", "KV", "HITS", "TOK/S", "STEP")} == {
        "BATCH": "3/4",
        "DONE": "50%",
        "KV": "-",
        "HITS": "25%",
        "TOK/S": "1.5k",
        "STEP": "250ms",
    }
    for number in NUMBERS.values():
        assert number.column is None or number.column.title in title.split()
        whole = number.column.whole if number.column else ""
        assert not whole or whole in WorkerModel.__struct_fields__
