"""Each role reports to its supervisor that it is ready or why it ends."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pytest

from shared.supervised import REPORT_ENV


@contextmanager
def supervised(*words: str) -> Iterator[tuple["subprocess.Popen[bytes]", BinaryIO]]:
    """Start a role, and yield it with the file of its reports.

    A role that still runs at the end is killed.
    """
    read_end, write_end = os.pipe()
    env = {**os.environ, "OMP_NUM_THREADS": "1", REPORT_ENV: str(write_end)}
    command = [sys.executable, "-m", *words, "--log-level", "warning"]
    process = subprocess.Popen(command, env=env, pass_fds=(write_end,))
    os.close(write_end)
    with open(read_end, "rb") as report:
        try:
            yield process, report
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    "words",
    [
        ("api", "--host", "127.0.0.1", "--port", "0"),
        ("worker", "--model", "echo=echo"),
        ("scripts.cli.jobs",),
    ],
    ids=lambda words: words[0],
)
def test_a_role_says_that_it_is_ready(redis_url: str, words: tuple[str, ...]) -> None:
    with supervised(*words, "--redis-url", redis_url) as (process, report):
        assert report.readline() == b"ready\n"
        process.terminate()
        assert process.wait(30) == 0
        assert report.read() == b""


def test_a_role_that_cannot_start_says_why(redis_url: str) -> None:
    with supervised("worker", "--redis-url", redis_url, "--model-path", "/does/not/exist") as (
        process,
        report,
    ):
        assert b"cannot read '/does/not/exist': it does not exist" in report.read()
        assert process.wait(30) == 2
