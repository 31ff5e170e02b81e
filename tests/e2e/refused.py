"""Runs roles that should refuse their settings: `python -m tests.e2e.refused` reads cells from
stdin, as JSON.

Everything is imported once, and each cell is a fork: dozens of them take seconds. A cell is `{role,
argv, env, as_nobody}`, what is told of it `{status, said}`; a role that does not end by itself is
killed, and has no status.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
from typing import Any, BinaryIO

import api.__main__  # noqa: F401 - so that no fork imports it again
import scripts.aios
import scripts.jobs
import worker.__main__  # noqa: F401

MOST_AT_ONCE = 2
TIMEOUT_S = 60
NOBODY = 65_534
ROLES = {
    "serve": lambda flags: scripts.aios.main(["serve", "hrm", *flags]),
    "api": lambda flags: scripts.aios.main(["api", *flags]),
    "worker": lambda flags: scripts.aios.main(["worker", *flags]),
    "jobs": scripts.jobs.main,
}


def run_all(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What came of each cell, in their order."""
    told: list[dict[str, Any]] = [{} for _ in cells]
    for first in range(0, len(cells), MOST_AT_ONCE):
        batch = [
            (index, *_start(cells[index]))
            for index in range(first, min(first + MOST_AT_ONCE, len(cells)))
        ]
        for index, pid, output in batch:
            told[index] = {"status": _end_of(pid), "said": _all_of(output)}
    return told


def _start(cell: dict[str, Any]) -> tuple[int, BinaryIO]:
    output = tempfile.TemporaryFile()  # noqa: SIM115 - `_all_of` closes it
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.setsid()
            signal.alarm(TIMEOUT_S)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.environ.update(cell["env"])
            if cell["as_nobody"] and os.geteuid() == 0:  # who may read everything
                os.setuid(NOBODY)
            status = ROLES[cell["role"]](cell["argv"])
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return pid, output


def _end_of(pid: int) -> int | None:
    """The exit status; None for a role that had to be killed. What it started goes with it."""
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    return None if code == -signal.SIGALRM else code


def _all_of(output: BinaryIO) -> str:
    with output:
        output.seek(0)
        return output.read().decode(errors="replace")


if __name__ == "__main__":
    json.dump(run_all(json.load(sys.stdin)), sys.stdout)
