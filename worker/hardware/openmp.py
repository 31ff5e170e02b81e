"""The OpenMP runtime of a worker that computes with several threads.

torch brings GNU's runtime, whose threads go to sleep between two operators when a front and Redis
want the same cores. Intel's and LLVM's keep them ready for a while, and one of these libraries
serves all that GNU's does. It has to be loaded before torch, and is used only where it is
installed: the package `intel-openmp`, or the system's `libomp`.
"""

import ctypes
import ctypes.util
import os
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

_PACKAGE = "intel-openmp"
_LIBRARY = "libiomp5.so"
_SHARED_MEMORY = Path("/dev/shm")
_REGISTRATION = "__KMP_REGISTERED_LIB_"


def use_ready_threads(threads: int) -> str | None:
    """Load a runtime that keeps threads ready, for a process of several threads.

    Return its path or name; None for one thread, where none is installed, and where torch has
    already been loaded with its own.
    """
    if threads < 2 or sys.platform != "linux" or "torch" in sys.modules:
        return None
    library = find_runtime()
    if library is None:
        return None
    forget_ended(_SHARED_MEMORY)
    try:
        # Global, so that torch finds the functions of this library before those of its own.
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return None
    return library


def forget_ended(folder: Path) -> None:
    """Remove the files that the runtime has left in `folder` for processes that have ended.

    It makes one for each process, with its id and user in the name, and removes it at an orderly
    exit. A worker that is killed, or ends at once, leaves it behind.
    """
    for path in folder.glob(f"{_REGISTRATION}*_{os.getuid()}"):
        pid = path.name.removeprefix(_REGISTRATION).partition("_")[0]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            path.unlink(missing_ok=True)


def find_runtime() -> str | None:
    """Return the path or the name of an installed runtime, None if there is none."""
    return _of_package() or ctypes.util.find_library("iomp5") or ctypes.util.find_library("omp")


def _of_package() -> str | None:
    try:
        files = distribution(_PACKAGE).files or []
    except PackageNotFoundError:
        return None
    for file in files:
        path = Path(str(file.locate())).resolve()
        if path.name == _LIBRARY and path.exists():
            return str(path)
    return None
