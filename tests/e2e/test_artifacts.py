"""Artifacts of a fleet with its own Redis are in a private directory, which ends with the fleet."""

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest
import redis

from scripts.cli.local_fleet import LocalFleet, running_fleets
from shared.queue import keys
from shared.shipped import REPO_ROOT
from tests.fixtures.e2e.serving import Serving, serving
from tests.fixtures.polling import wait_until

LARGE = bytes(range(256)) * 8192


def fleet_of(serving: Serving) -> LocalFleet:
    return next(fleet for fleet in running_fleets() if fleet.pid == serving.process.pid)


def names_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder and its sub-folders."""
    return [path.name for path in folder.rglob("*") if path.is_file()]


def swept(fleet: LocalFleet) -> dict[str, int]:
    """Run `aios jobs --once` and return its counts of artifacts.

    The command finds the fleet's files by its port alone.
    """
    command = [
        sys.executable,
        "-m",
        "scripts.cli.aios",
        "jobs",
        "--once",
        "--port",
        str(fleet.port),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPO_ROOT)
    counts: dict[str, int] = json.loads(done.stdout)["artifacts"]
    return counts


def test_a_fleet_keeps_files_as_long_as_it_lives() -> None:
    """An upload outlives its front, and a file that the front was writing is removed."""
    with serving("--model-path", "echo") as running:
        fleet = fleet_of(running)
        folder = Path(str(fleet.artifact_url))
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", timeout=60) as client:
            file = client.files.create(file=("large.bin", LARGE), purpose="user_data")
            assert names_in(folder) == [file.id]
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700

            def half() -> object:
                yield LARGE[::-1]
                wait_until(lambda: len(names_in(folder)) == 2, "the front writes")
                [front] = running.children("api")
                front.send_signal(signal.SIGKILL)
                front.wait()
                while True:
                    yield LARGE

            with pytest.raises(httpx.TransportError):
                httpx.post(f"{running.url}/v1/artifacts", content=half(), timeout=60)  # type: ignore[arg-type]

            # The unfinished file is kept while its front may live, which is a matter of time.
            assert swept(fleet) == {}
            with redis.Redis.from_url(fleet.redis_url) as broker:
                [left] = broker.zrange(keys.LOOSE, 0, -1)
                broker.zadd(keys.LOOSE, {left: 1})
            # The fleet's own janitor may be faster than this sweep.
            swept(fleet)
            wait_until(lambda: names_in(folder) == [file.id], "it is removed")

            wait_until(lambda: answers(running), "there is a front again")
            assert client.files.content(file.id).content == LARGE
    assert not folder.exists()


def answers(running: Serving) -> bool:
    try:
        return httpx.get(f"{running.url}/healthz", timeout=60).status_code == 200
    except httpx.TransportError:
        return False
