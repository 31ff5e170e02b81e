"""Python's garbage collector in a process that serves.

What is there when serving begins stays for good: modules, settings, a network. A full collection
would walk through all of it again and again, while requests wait.
"""

import gc

_YOUNG = 5000
"""New objects after which the young ones are looked at. Most of them end with their request."""


def settle() -> None:
    """Collect, and leave what is left out of later collections.

    `collect` takes it in again.
    """
    collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])


def collect() -> None:
    """Collect all garbage, also in what `settle` has left out."""
    was_settled = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if was_settled:
        gc.freeze()
