"""Messages between the supervisor of a fleet and its children, beside settings.

A child learns from its environment whether the fleet's Redis ends with the fleet. It reports
through a pipe that it is ready, or why it ends. A process that nobody supervises reports nothing.
"""

import os

REDIS_ENDS_ENV = "AIOS_REDIS_ENDS_WITH_FLEET"
REPORT_ENV = "AIOS_REPORT_FD"

_READY = b"ready\n"
_LONGEST_REASON = 300


def redis_ends_with_fleet() -> bool:
    """Return whether the work in flight is lost when this process's fleet stops."""
    return os.environ.get(REDIS_ENDS_ENV) == "1"


def report_ready() -> None:
    """Tell the supervisor that this process does its work now."""
    _report(_READY)


def report_failure(reason: str) -> None:
    """Tell the supervisor in one line why this process is about to end."""
    line = " ".join(reason.split())[:_LONGEST_REASON]
    _report(line.encode(errors="replace") + b"\n")


def read_report(report: bytes) -> tuple[bool, str]:
    """Return whether a child has been ready, and the last reason that it gave."""
    is_ready = False
    reason = ""
    for line in report.splitlines(keepends=True):
        if line == _READY:
            is_ready = True
        else:
            reason = line.decode(errors="replace").strip()
    return is_ready, reason


def _report(message: bytes) -> None:
    number = os.environ.get(REPORT_ENV, "")
    if not number.isdecimal():
        return
    try:
        os.write(int(number), message)
    except OSError:
        # The supervisor is gone, and this process goes with it.
        return
