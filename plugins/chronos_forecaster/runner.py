"""Forecasts by the networks of the Chronos family, with their own code and a directory's weights.

The first of them, T5 over binned numbers, draws futures at random. Here the numbers of a series are
the seed, so equal series have equal forecasts, and each is computed by itself.
"""

import zlib
from collections.abc import Hashable, Sequence

import torch
from chronos import BaseChronosPipeline, ChronosPipeline

from shared.errors import FleetError, InvalidRequest
from shared.messages import Task
from shared.tasks.series import Forecast, Forecasted, Quantile
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import BatchProgress, Files, TaskOutput, TaskRunnerSpec

_LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


class ChronosRunner:
    def __init__(self, options: RunnerOptions) -> None:
        self._pipeline = BaseChronosPipeline.from_pretrained(
            options.path,
            device_map=options.device,
            dtype=options.dtype,
            local_files_only=True,
        )
        self._draws = isinstance(self._pipeline, ChronosPipeline)
        self.spec = TaskRunnerSpec(
            "chronos",
            options.name,
            found=f"{type(self._pipeline).__name__}: time-series-forecasting",
            max_batch=options.max_batch,
            tasks=("time-series-forecasting",),
            trial=Forecast(tuple(float(number % 4) for number in range(16)), horizon=2),
        )

    def read(self, task: Task, files: Files) -> Forecast:
        if not isinstance(task, Forecast):
            raise InvalidRequest("This model only continues series of numbers.", field="model")
        return task

    def group_key(self, item: Forecast) -> Hashable:
        return item if self._draws else item.horizon

    @torch.inference_mode()
    def run(
        self, items: Sequence[Forecast], progress: BatchProgress
    ) -> list[TaskOutput | FleetError]:
        series = [torch.tensor(item.values) for item in items]
        with torch.random.fork_rng():
            torch.manual_seed(zlib.crc32(series[0].numpy().tobytes()))
            # [series, horizon, levels] and [series, horizon]
            # [horizon, levels] and [horizon] of each series; with one more axis from Chronos-2.
            quantiles, means = self._pipeline.predict_quantiles(
                series, prediction_length=items[0].horizon, quantile_levels=_LEVELS
            )
        outputs: list[TaskOutput | FleetError] = []
        for mean, one in zip(means, quantiles, strict=True):
            found = []
            by_level = one.reshape(-1, len(_LEVELS)).T
            for level, values in zip(_LEVELS, by_level.tolist(), strict=True):
                found.append(Quantile(level, tuple(values)))
            outputs.append(TaskOutput(Forecasted(tuple(mean.flatten().tolist()), tuple(found))))
        return outputs


def load(options: RunnerOptions) -> ChronosRunner:
    return ChronosRunner(options)
