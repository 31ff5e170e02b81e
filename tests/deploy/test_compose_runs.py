"""Services of compose.yaml, run as processes with their commands, environments and health checks,
at other addresses."""

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
    """Run a process and end it as a container is ended. Its log is in the directory."""
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
    service_port = str(health_port(service))

    # The service's own port may be taken on this machine.
    replaced = {service_port: str(port)}
    flags = [replaced.get(word, word) for word in service["command"]]
    python, *check = health_argv(service)
    assert python == "python3"
    check = [word.replace(f":{service_port}/", f":{port}/") for word in check]

    env = service["environment"] | {
        "AIOS_REDIS_URL": redis_server.url,
        "AIOS_PORT": str(port),
        "AIOS_ARTIFACT_URL": str(tmp_path / "artifacts"),
    }
    with running([sys.executable, "-m", "scripts.cli.aios", *flags], env, tmp_path) as process:

        def is_healthy() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            done = subprocess.run([sys.executable, *check], capture_output=True, check=False)
            return done.returncode == 0

        wait_until(is_healthy, f"{name} is healthy")


def test_redis_forgets_nothing_by_itself(tmp_path: Path) -> None:
    port = free_port()
    [_, *flags] = SERVICES["redis"]["command"]
    address = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    client = redis_client.Redis(port=port, decode_responses=True)

    with running([redis_executable(), *flags, *address], {}, tmp_path), client:
        wait_until(lambda: answers(client), "redis answers")

        config = client.config_get("*")
        assert config["appendonly"] == "yes"
        assert config["appendfsync"] == "everysec"
        assert config["save"] == ""
        assert config["maxmemory-policy"] == "noeviction"
        assert config["maxmemory"] == str(512 << 20)


def answers(client: "redis_client.Redis[str]") -> bool:
    try:
        return bool(client.ping())
    except redis_client.ConnectionError:
        return False
