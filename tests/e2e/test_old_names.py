"""`uvicorn levanter.serve.min_server:app` serves a whole fleet, which starts and ends with it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from scripts.cli.local_fleet import running_fleets
from tests.fixtures.bare_settings import without_settings
from tests.fixtures.polling import wait_until
from tests.fixtures.redis_server import free_port


@contextmanager
def uvicorn(port: int, log: Path, **env: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the server in a directory that is not ours, and kill it with all its children."""
    command = [sys.executable, "-m", "uvicorn", "levanter.serve.min_server:app"]
    command += ["--port", str(port)]
    environment = {
        **without_settings(os.environ),
        "OMP_NUM_THREADS": "1",
        "AIOS_RUN_DIR": str(log.parent / "run"),
        **env,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=log.parent, env=environment, stdout=output, stderr=output
        )
    family: list[psutil.Process] = []
    try:
        yield process
    finally:
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
        process.wait()
        for child in family:
            if child.is_running():
                child.kill()


def is_warm(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_uvicorn_serves_a_fleet_and_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B16, B17: the server is healthy when a worker is warm, and it ends its fleet."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("AIOS_RUN_DIR", str(tmp_path / "run"))
    with uvicorn(port, tmp_path / "log", AIOS_MODELS="mine=echo", LOAD_IN_8BIT="true") as process:
        wait_until(lambda: process.poll() is not None or is_warm(url), "a worker is warm")
        body = {"prompt": "ab", "max_tokens": 4}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=180)
        assert answer.json()["choices"][0]["text"] == "abab"
        (model,) = httpx.get(f"{url}/v1/models", timeout=60).json()["data"]
        assert model["id"] == "mine"

        # The fleet does not know the port of uvicorn.
        (fleet,) = running_fleets()
        assert fleet.port == 0
        assert fleet.has_open_metrics is False

        children = psutil.Process(process.pid).children(recursive=True)
        assert any("redis-server" in child.name() for child in children)
        for child in children:
            assert child.cmdline()[-1] != "api"

        process.terminate()
        process.wait(timeout=180)
        _, alive = psutil.wait_procs(children, timeout=180)
        assert alive == []
    assert "settings from general variables" in (tmp_path / "log").read_text()


def test_uvicorn_is_told_why_a_fleet_does_not_start(tmp_path: Path) -> None:
    with uvicorn(free_port(), tmp_path / "log", MODEL_PATH="/no/where") as process:
        assert process.wait(timeout=180) != 0
    log = (tmp_path / "log").read_text()
    fault = "model 'where': cannot read '/no/where': it does not exist (from MODEL_PATH)"
    assert f"model_path: {fault}" in log
    assert "Traceback" not in log
