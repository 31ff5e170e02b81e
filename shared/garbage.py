"""Python's garbage collector in a process that serves.

What is there when serving begins stays for good: modules, settings, a network. A full collection
would walk through all of it again and again, while requests wait.
"""

import gc

_YOUNG = 5000
"""New objects after which the young ones are looked at. Most of them end with their request."""


_settled = False


def settle() -> None:
    """Collect, and leave what is left out of later collections.

    `collect` takes it in again.
    """
    global _settled  # noqa: PLW0603 - the collector is the whole process's, too
    collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
    _settled = True


def collect() -> None:
    """Collect all garbage, also in what `settle` has left out.

    Objects that others have frozen, such as a test runner its tests, are none of ours and stay out.
    """
    if not _settled:
        gc.collect()
        return
    gc.unfreeze()
    gc.collect()
    gc.freeze()
