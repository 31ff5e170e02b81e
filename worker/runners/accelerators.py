"""The call of an accelerator, which makes a loaded network faster."""

from collections.abc import Callable

from torch import nn

from shared.accelerators import ACCELERATORS
from shared.plugins import import_target
from worker.engine.runner import RunnerOptions
from worker.models.errors import ModelFormatError

Prepare = Callable[[nn.Module, RunnerOptions], int]
"""A function that changes a network in place, and returns the number of replaced layers."""


def prepare(model: nn.Module, options: RunnerOptions) -> int:
    """Change the network in place, by the accelerator that `options.quantize` names.

    The network must be on its device already. Return the number of its layers that were replaced.
    Raise ModelFormatError for an accelerator that is not for this device, or that this machine
    lacks.
    """
    name = options.quantize
    accelerator = ACCELERATORS[name]
    _check_devices(model, name)
    if accelerator.is_there is not None and not import_target(accelerator.is_there)():
        raise ModelFormatError(f"{name} weights need {accelerator.needs}; they are missing.")
    change: Prepare = import_target(accelerator.prepare)
    return change(model, options)


def _check_devices(model: nn.Module, name: str) -> None:
    """Raise ModelFormatError for a network on a device that the accelerator is not for."""
    devices = ACCELERATORS[name].devices
    if not devices:
        return
    used = {parameter.device.type for parameter in model.parameters()}
    others = sorted(used - set(devices))
    if others:
        expected = " and the ".join(device.upper() for device in devices)
        problem = f"{name} weights are for the {expected}; this model is on {', '.join(others)}"
        raise ModelFormatError(f"{problem}; leave quantize out.")
