"""`aios doctor` tells what a fleet with the given flags would lack on this machine."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from scripts.cli.aios import main
from scripts.cli.embedded_redis import free_port
from tests.fixtures.hub import asked_here, stand_in_hub
from tests.fixtures.redis_server import RedisServer

Findings = dict[str, dict[str, Any]]


def doctor(capsys: pytest.CaptureFixture[str], *flags: str, port: int = 0) -> tuple[int, Findings]:
    """Return the exit status and the findings, by thing. Those of one thing are joined."""
    where = ["--host", "127.0.0.1", "--port", str(port or free_port())]
    status = main(["doctor", "--json", *where, *flags])
    findings: Findings = {}
    for finding in json.loads(capsys.readouterr().out)["findings"]:
        known = findings.setdefault(finding["thing"], finding)
        if known is not finding:
            known["remedy"] += finding["remedy"]
    return status, findings


def test_a_machine_that_can_serve(capsys: pytest.CaptureFixture[str]) -> None:
    status, findings = doctor(capsys)
    assert status == 0
    assert {finding["state"] for finding in findings.values()} <= {"good", "poor"}
    assert findings["models"]["found"].startswith("hrm-text-math")
    assert findings["Redis"]["found"].endswith("redis-server, started with the fleet")
    assert findings["address"]["remedy"] == "", "only this machine reaches it"
    for thing in ("python", "processor", "cores", "workers", "GPU", "device", "open files"):
        assert findings[thing]["found"], thing


def test_what_is_missing_is_told_with_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = ["--redis-url", f"redis://127.0.0.1:{free_port()}"]
        flags += ["--model-path", str(tmp_path / "absent")]
        file = tmp_path / "file"
        file.touch()
        flags += ["--artifact-url", str(file / "below")]
        status, findings = doctor(capsys, *flags, port=port)
    assert status == 1
    bad = {thing for thing, finding in findings.items() if finding["state"] == "bad"}
    assert bad == {"Redis", "address", "models", "artifacts"}
    assert "--redis-url" in findings["Redis"]["remedy"]
    assert "choose another --port" in findings["address"]["remedy"]
    assert "does not exist" in findings["models"]["remedy"]
    assert "name a directory" in findings["artifacts"]["remedy"]


def test_models_of_the_hub_are_told_and_not_fetched(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with stand_in_hub() as hub, asked_here(hub.url, tmp_path / "cache"):
        hub.add("org/net", tmp_path)
        status, findings = doctor(capsys, "--model-path", "org/net", "--threads", "1")
        assert hub.requests == []
        assert status == 0
        assert findings["model net"]["found"] == "the start fetches it from the hub"
        status, findings = doctor(capsys, "--model-path", "org/net", "--no-hub")
    assert status == 1
    assert "hf download org/net" in findings["models"]["remedy"]


def test_a_redis_that_may_lose_work_is_told(
    capsys: pytest.CaptureFixture[str], redis_server: RedisServer
) -> None:
    status, findings = doctor(capsys, "--redis-url", redis_server.url)
    assert status == 0
    assert findings["Redis"]["found"].startswith("version ")
    assert "set it to yes" in findings["Redis"]["remedy"]


def test_more_threads_than_cores_and_an_open_door_are_told_to_people(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--threads", "64", "--workers", "2", "--host", "0.0.0.0", "--port", str(free_port())]
    assert main(["doctor", *flags]) == 0
    printed = capsys.readouterr().out
    assert "warn  workers" in printed
    assert "-> 2 workers of 64 threads are more than" in printed
    assert "-> anybody on the network" in printed
    assert main(["doctor", *flags, "--api-keys", "me:secret"]) == 0
    assert "anybody" not in capsys.readouterr().out
