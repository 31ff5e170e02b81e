"""Options of runners for tests: those of all runners and a runner's own, side by side."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from shared.runner_options import validated
from shared.runner_table import AUTO, info_of
from worker.registry import detect
from worker.runners.base import RunnerOptions

_OF_ALL = {field.name for field in fields(RunnerOptions)}


def options_for(path: Path | str, kind: str = AUTO, **values: Any) -> RunnerOptions:
    """Return the options by name; which runner declares the others is said by `kind`, or by the
    model's files."""
    own = {name: value for name, value in values.items() if name not in _OF_ALL}
    if not own:
        return RunnerOptions(str(path), **values)
    declared = info_of(detect(str(path)) if kind == AUTO else kind).options
    common = {name: value for name, value in values.items() if name in _OF_ALL}
    return RunnerOptions(str(path), own=validated(declared, own), **common)
