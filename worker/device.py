"""Which device and how many threads this process computes with.

A device that was asked for by name must be there; `auto` takes cuda (ROCm counts as cuda), then mps, then cpu (X14).
Torch is imported only when a device is chosen: the echo runner needs none.
"""

import os

from shared.settings import SettingsError


def choose(wanted: str) -> str:
    """The device to use. Raises SettingsError when a named one is missing."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, is_there in available.items() if is_there)
    if not available[wanted]:
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise SettingsError(f"device: {wanted!r} was asked for but is not available here; there is {there}")
    return wanted


def use_threads(count: int) -> None:
    """Fix the number of compute threads; must come before torch is first imported to bind OpenMP too."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    import torch

    torch.set_num_threads(count)
