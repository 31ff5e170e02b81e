"""Ties a child process's life to its parent's: when the parent dies, however it dies, the kernel
kills the child.

Linux only (PR_SET_PDEATHSIG); elsewhere a child of a killed parent lives on.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from functools import partial

_PR_SET_PDEATHSIG = 1
_prctl = (
    ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None
)  # found before any fork


def die_with_parent() -> Callable[[], None] | None:
    """A `preexec_fn` that has the child killed when the *thread* that starts it ends: call from the
    main thread."""
    return None if _prctl is None else partial(die_with, os.getpid())


def die_with(parent: int) -> None:
    """Called in a child of the process `parent`: be killed with it."""
    if _prctl is None:
        return
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)
