"""A child process's life, tied to its parent's: when the parent dies, however it dies, the kernel
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
# Looked up before any fork: a child may only make the call.
_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


def die_with_parent() -> Callable[[], None] | None:
    """Return a `preexec_fn` that has the child killed with this process, or None where there is
    none.

    The kernel kills the child when the *thread* that starts it ends: call this from the main
    thread.
    """
    if _prctl is None:
        return None
    return partial(die_with, os.getpid())


def die_with(parent: int) -> None:
    """Have this process, a child of the process `parent`, killed with it."""
    if _prctl is None:
        return
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the kernel was asked.
    if os.getppid() != parent:
        os._exit(1)
