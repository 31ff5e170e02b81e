"""Child processes that the kernel kills when their parent dies, however it dies.

This works on Linux only (PR_SET_PDEATHSIG). Elsewhere a child outlives a parent that is killed.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from functools import partial

_PR_SET_PDEATHSIG = 1
# Looked up before any fork: between fork and exec a child may only make the system call.
_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


def die_with_parent() -> Callable[[], None] | None:
    """Return a `preexec_fn` that lets the kernel kill the child when this process dies.

    Return None on systems other than Linux. The kernel kills the child when the *thread* that
    starts it ends, so start the child from the main thread.
    """
    if _prctl is None:
        return None
    return partial(die_with, os.getpid())


def die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent, the process `parent`, dies."""
    if _prctl is None:
        return
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the system call.
    if os.getppid() != parent:
        os._exit(1)
