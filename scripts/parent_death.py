"""Ties a child process's life to its parent's: when the parent dies, however it dies, the kernel kills the child.

Linux only (PR_SET_PDEATHSIG); elsewhere `die_with_parent` gives None and a child of a killed parent lives on.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> Callable[[], None] | None:
    """A `preexec_fn` that has the child killed when the *thread* that starts it ends: call from the main thread."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork, where loading is safe
    parent = os.getpid()

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel was asked
            os._exit(1)

    return ask_kernel
