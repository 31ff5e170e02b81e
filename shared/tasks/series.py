"""The task that continues a series of numbers, and its result."""

import msgspec

from shared.tasks.results import OtherResult
from shared.tasks.specs import OtherTask


class Forecast(OtherTask, frozen=True, omit_defaults=True, tag="time-series-forecasting"):
    """Return the `horizon` numbers that follow these, which are equally far apart in time.

    A network sees the last ones, as many as fit its context.
    """

    values: tuple[float, ...]
    horizon: int


class Quantile(msgspec.Struct, frozen=True):
    """Numbers below which the future stays with the probability `level`."""

    level: float
    values: tuple[float, ...]


class Forecasted(OtherResult, frozen=True, tag="time-series-forecasting"):
    """The numbers that are expected, and the quantiles that the network knows, in their order."""

    values: tuple[float, ...]
    quantiles: tuple[Quantile, ...]
