"""The task that continues a series of numbers, done by a pipeline of ours."""

from typing import Any

from shared.tasks.series import Forecast, Forecasted, Quantile
from worker.engine.task_runner import Files, TaskOutput
from worker.tasks.one_shot import Decoded, Loaded, OneShot
from worker.tasks.own_pipelines import Forecaster


def _read(task: Forecast, files: Files, loaded: Loaded) -> Decoded:
    return Decoded(task.values)


def _forecasted(task: Forecast, found: dict[str, Any], seconds: float) -> TaskOutput:
    quantiles = []
    for level, values in zip(found["levels"], found["quantiles"], strict=True):
        quantiles.append(Quantile(level, tuple(values)))
    return TaskOutput(Forecasted(tuple(found["values"]), tuple(quantiles)))


SERIES = {
    "time-series-forecasting": OneShot(
        parts=(),
        read=_read,
        options=lambda task, decoded, loaded: {"horizon": task.horizon},
        output=_forecasted,
        trial=(Forecast((0.0, 1.0, 0.0, 1.0), horizon=2), {}),
        pipeline=Forecaster,
    ),
}
