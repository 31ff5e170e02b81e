"""The numbers of a model are described in one list, and everything else reads it."""

import pytest

from scripts.cli.watch.screen import View, screen
from shared.fleet.presence import Fleet
from shared.fleet.snapshot import Snapshot, Worker, WorkerModel
from shared.fleet.sums import of_workers
from shared.messages import ModelInfo, WorkerInfo, decode_worker, encode
from shared.telemetry.metrics import Metrics, WorkerMetrics
from shared.telemetry.model_load import NUMBERS, ModelLoad
from worker.host.metrics_reporter import MEASURES

MODEL = ModelInfo(
    "m", runner="echo", found="found", context_window=9, max_new_tokens=9, max_batch=4
)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_measured_and_told_wherever_its_field_says(name: str) -> None:
    number = NUMBERS[name]
    first = worker_with(name, value=7)
    second = worker_with(name, value=5)

    assert name in MEASURES
    assert decode_worker(encode(first)) == first
    assert decode_worker(encode(second)) == second
    assert (name in WorkerMetrics().by_model) == (number.metric is not None)
    assert number.meaning.endswith(".")

    if number.total is not None:
        assert name in Metrics().fleet.by_name

        totals = of_workers(Fleet((first, second), {"m": MODEL}))
        if number.total.how == "sum":
            assert totals[name] == {("m",): 12}
        else:
            assert totals[name] == {("m",): 7}


def worker_with(name: str, value: int) -> WorkerInfo:
    load = ModelLoad("m", **{name: value})  # type: ignore[arg-type]
    return WorkerInfo(load.id, "ready", (MODEL,), loads=(load,))


def test_nothing_else_is_measured() -> None:
    assert MEASURES.keys() == NUMBERS.keys()


def test_columns_are_shown() -> None:
    model = WorkerModel(
        "m",
        running=3,
        max_batch=4,
        tokens_per_s=1500.0,
        step_s=0.25,
        prefix_lookups=4,
        prefix_hits=1,
        steps_done=1,
        steps_total=2,
    )
    worker = Worker(
        id="w",
        state="ready",
        pool="p",
        uptime_s=1.0,
        in_flight=0,
        memory_bytes=0,
        device_bytes=0,
        stale_appends=0,
        models=(model,),
    )
    snapshot = Snapshot("now", "ready", workers=(worker,))
    lines = screen(View(snapshot), 300)
    [title] = [line for line in lines if line.startswith("WORKER")]
    [row] = [line for line in lines if line.startswith("w ")]
    titles = title.split()
    cells = dict(zip(titles, row.split(), strict=False))

    assert cells["BATCH"] == "3/4"
    assert cells["DONE"] == "50%"
    assert cells["KV"] == "-"
    assert cells["HITS"] == "25%"
    assert cells["TOK/S"] == "1.5k"
    assert cells["STEP"] == "250ms"

    for number in NUMBERS.values():
        if number.column is None:
            continue
        assert number.column.title in titles
        if number.column.whole:
            assert number.column.whole in WorkerModel.__struct_fields__
