"""Services of compose.yaml as processes: the same commands, environments and health checks, at
other addresses."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis as redis_client

from tests.fixtures.deploy.compose_files import ROOT, health_argv, health_port, services
from tests.fixtures.polling import wait_until
from tests.fixtures.redis_server import RedisServer, free_port, redis_executable

SERVICES = services("compose.yaml")


@contextmanager
def running(
    argv: list[str], env: dict[str, str], directory: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Ended as a container is; its log is in the directory."""
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            argv, env={**os.environ, **env}, cwd=ROOT, stdout=log, stderr=log
        )
    try:
        yield process
        process.terminate()
        assert process.wait(timeout=180) == 0, (directory / "log").read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["api", "jobs"])
def test_a_role_passes_its_health_check(
    redis_server: RedisServer, tmp_path: Path, name: str
) -> None:
    service = SERVICES[name]
    port = free_port()
    listens = str(health_port(service))
    flags = [str(port) if word == listens else word for word in service["command"]]
    env = service["environment"] | {"AIOS_REDIS_URL": redis_server.url, "AIOS_PORT": str(port)}
    env["AIOS_ARTIFACT_URL"] = str(tmp_path / "artifacts")
    check = [word.replace(f":{listens}/", f":{port}/") for word in health_argv(service)]
    assert check[0] == "python3"
    with running([sys.executable, "-m", "scripts.cli.aios", *flags], env, tmp_path) as process:

        def is_healthy() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            return (
                subprocess.run(
                    [sys.executable, *check[1:]], capture_output=True, check=False
                ).returncode
                == 0
            )

        wait_until(is_healthy, f"{name} is healthy")


def test_redis_forgets_nothing_by_itself(tmp_path: Path) -> None:
    port = free_port()
    [_, *flags] = SERVICES["redis"]["command"]
    places = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    wanted = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
    }
    client = redis_client.Redis(port=port, decode_responses=True)
    with running([redis_executable(), *flags, *places], {}, tmp_path), client:
        wait_until(lambda: answers(client), "redis answers")
        assert {name: client.config_get(name)[name] for name in wanted} == wanted
        assert client.config_get("maxmemory")["maxmemory"] == str(512 << 20)


def answers(client: "redis_client.Redis[str]") -> bool:
    try:
        return bool(client.ping())
    except redis_client.ConnectionError:
        return False
