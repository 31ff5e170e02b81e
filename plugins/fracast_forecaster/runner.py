"""Forecasts of series by Fracast-0, with its own code and the weights of a directory."""

from collections.abc import Hashable, Sequence

import numpy as np
from fracast import FracastModel

from shared.errors import FleetError, InvalidRequest
from shared.messages import Task
from shared.tasks.series import Forecast, Forecasted, Quantile
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import BatchProgress, Files, TaskOutput, TaskRunnerSpec

_LEAST_NUMBERS = 8


class FracastRunner:
    def __init__(self, options: RunnerOptions) -> None:
        self._model = FracastModel.from_pretrained(options.path, weights="fp32")
        self._median = self._model.quantiles.index(0.5)
        self.spec = TaskRunnerSpec(
            "fracast",
            options.name,
            found="Fracast-0: time-series-forecasting",
            max_batch=options.max_batch,
            tasks=("time-series-forecasting",),
            trial=Forecast(tuple(float(number % 4) for number in range(16)), horizon=2),
        )

    def read(self, task: Task, files: Files) -> Forecast:
        if not isinstance(task, Forecast):
            raise InvalidRequest("This model only continues series of numbers.", field="model")
        if len(task.values) < _LEAST_NUMBERS:
            raise InvalidRequest(f"Expected {_LEAST_NUMBERS} numbers or more.", field="inputs")
        return task

    def group_key(self, item: Forecast) -> Hashable:
        return (len(item.values), item.horizon)

    def run(
        self, items: Sequence[Forecast], progress: BatchProgress
    ) -> list[TaskOutput | FleetError]:
        series = np.array([item.values for item in items])
        # [series, horizon, quantiles]
        forecasts = self._model.forecast_batch(series, horizon=items[0].horizon)
        outputs: list[TaskOutput | FleetError] = []
        for forecast in forecasts:
            quantiles = []
            for level, values in zip(self._model.quantiles, forecast.T.tolist(), strict=True):
                quantiles.append(Quantile(level, tuple(values)))
            expected = tuple(forecast[:, self._median].tolist())
            outputs.append(TaskOutput(Forecasted(expected, tuple(quantiles))))
        return outputs


def load(options: RunnerOptions) -> FracastRunner:
    return FracastRunner(options)
