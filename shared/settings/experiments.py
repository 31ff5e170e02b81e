"""Experiments in the settings of a fleet: names that stand for several models, by weight."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from shared.settings.types import ModelId, Weight

FORM = "{name: {model: weight, model: weight}}"


class Arm(BaseModel):
    """A model of an experiment, and its weight among the other arms."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: ModelId
    weight: Weight

    def __str__(self) -> str:
        return f"{self.model}: {self.weight:g}"


class Experiment(BaseModel):
    """An experiment. Requests for its name go to one of its arms.

    The share of an arm is its weight, divided by the sum of all weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ModelId
    arms: tuple[Arm, ...]

    @model_validator(mode="after")
    def _compares_models(self) -> Self:
        models = [arm.model for arm in self.arms]
        if len(models) < 2:
            raise ValueError("expected at least two models")
        if len(set(models)) < len(models):
            raise ValueError("expected each model once among the arms")
        return self

    def __str__(self) -> str:
        arms = ", ".join(map(str, self.arms))
        return f"{self.name}={{{arms}}}"


def entries_of(value: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """Return the entries of experiments that are given as `FORM`. Raise ValueError."""
    entries = []
    for name, weights in value.items():
        if not isinstance(weights, Mapping):
            raise ValueError(f"expected {FORM}, got {weights!r} for {name!r}")
        arms = [{"model": model, "weight": weight} for model, weight in weights.items()]
        entries.append({"name": name, "arms": arms})
    return entries


def check_names(experiments: tuple[Experiment, ...]) -> None:
    """Raise ValueError for a name that comes twice, and for an arm that is an experiment."""
    names = [experiment.name for experiment in experiments]
    if len(set(names)) < len(names):
        raise ValueError("expected experiments with names of their own")
    for experiment in experiments:
        for arm in experiment.arms:
            if arm.model in names:
                raise ValueError(f"expected models as arms, got the experiment {arm.model!r}")
