"""Artifacts of a fleet with its own Redis, as a person has it: a private directory, which goes with
the fleet."""

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


def files_in(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file()]


def swept(fleet: LocalFleet) -> dict[str, int]:
    """What `aios jobs --once` finds to be over, without being told where the fleet keeps its
    files."""
    command = [
        sys.executable,
        "-m",
        "scripts.cli.aios",
        "jobs",
        "--once",
        "--port",
        str(fleet.port),
    ]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPO_ROOT).stdout
    found: dict[str, int] = json.loads(told)["artifacts"]
    return found


@pytest.mark.timeout(400)
def test_a_fleet_keeps_files_as_long_as_it_lives() -> None:
    """An upload is kept over the death of its front; what one that died was writing is removed."""
    with serving("--model-path", "echo") as running:
        fleet = fleet_of(running)
        place = Path(str(fleet.artifact_url))
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", timeout=60) as client:
            file = client.files.create(file=("large.bin", LARGE), purpose="user_data")
            assert [path.name for path in files_in(place)] == [file.id]
            assert stat.S_IMODE(place.stat().st_mode) == 0o700

            def half() -> object:
                yield LARGE[::-1]
                wait_until(lambda: len(files_in(place)) == 2, "the front writes")
                [front] = running.children("api")
                front.send_signal(signal.SIGKILL)
                front.wait()
                while True:
                    yield LARGE

            with pytest.raises(httpx.TransportError):
                httpx.post(f"{running.url}/v1/artifacts", content=half(), timeout=60)  # type: ignore[arg-type]
            assert swept(fleet) == {}, "its front may live"
            with redis.Redis.from_url(fleet.redis_url) as broker:
                [left] = broker.zrange(keys.LOOSE, 0, -1)
                broker.zadd(keys.LOOSE, {left: 1})
            swept(fleet)  # or the fleet's own janitor was faster
            wait_until(
                lambda: [path.name for path in files_in(place)] == [file.id], "it is removed"
            )
            wait_until(lambda: answers(running), "there is a front again")
            assert client.files.content(file.id).content == LARGE
    assert not place.exists()


def answers(running: Serving) -> bool:
    try:
        return httpx.get(f"{running.url}/healthz", timeout=60).status_code == 200
    except httpx.TransportError:
        return False
