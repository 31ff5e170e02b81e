"""What the chart only hands on, tried for real: the script of `helm test` on a fleet, Redis's arguments on a Redis."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from scripts.aios import bindable_port
from tests.deploy.charts import CHART, release_of
from tests.e2e.serving import serving
from tests.polling import wait_until


def smoke_test(url: str, keys: str) -> "subprocess.CompletedProcess[str]":
    """As the Pod runs it."""
    pods = dict(release_of(CHART / "ci" / "external-redis.yaml").pods())
    (container,) = pods["demo-aios-fleet-test"]["containers"]
    assert container["command"] == ["python", "-c"]
    env = os.environ | {"FRONT_URL": url, "AIOS_API_KEYS": keys}
    assert {item["name"] for item in container["env"]} == {"FRONT_URL", "AIOS_API_KEYS"}
    command = [sys.executable, "-c", *container["args"]]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_helm_test_tells_a_fleet_that_serves_from_one_that_does_not() -> None:
    with serving("--model-path", "echo", "--api-keys", "ci:hush-1,hush-2") as fleet:
        well, badly = smoke_test(fleet.url, "ci:hush-1, hush-2"), smoke_test(fleet.url, "wrong")
    assert (well.returncode, well.stderr) == (0, "")
    assert "completions" in well.stdout
    assert badly.returncode == 1
    assert "401" in badly.stderr


def test_redis_takes_the_arguments_it_is_given(tmp_path: Path) -> None:
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("no redis-server here")
    pods = dict(release_of(CHART / "ci" / "keda.yaml").pods())
    (container,) = pods["demo-aios-fleet-redis"]["containers"]
    args = [{"/data": str(tmp_path), "$(REDISCLI_AUTH)": "hush"}.get(arg, arg) for arg in container["args"]]
    port = bindable_port("127.0.0.1", 0)
    process = subprocess.Popen([server, *args, "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(port=port, password="hush", socket_timeout=5)
        wait_until(lambda: _answers(client), "redis answers", deadline_s=20)
        wanted = {"maxmemory": str(768 << 20), "maxmemory-policy": "noeviction", "appendonly": "yes"}
        assert wanted.items() <= client.config_get("*").items()
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
    finally:
        process.terminate()
        process.wait(timeout=20)
    assert list(tmp_path.glob("appendonly*"))


def _answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
