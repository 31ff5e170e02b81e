"""Scripts and arguments of the chart, run for real: `helm test` on a front, Redis's arguments on a
Redis."""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from redis import AuthenticationError, ConnectionError
from redis import Redis as BlockingRedis
from redis.asyncio import Redis

from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import live
from tests.fixtures.deploy.charts import CHART, release_of
from tests.fixtures.deploy.kubernetes import names
from tests.fixtures.polling import wait_until
from tests.fixtures.redis_server import free_port


def smoke_test(url: str, keys: str) -> "subprocess.CompletedProcess[str]":
    """Run the script of `helm test` as its Pod does."""
    pods = dict(release_of(CHART / "ci" / "external-redis.yaml").pods())
    (container,) = pods["demo-aios-fleet-test"]["containers"]
    assert container["command"] == ["python", "-c"]
    assert set(names(container["env"])) == {"FRONT_URL", "AIOS_API_KEYS"}

    env = os.environ | {"FRONT_URL": url, "AIOS_API_KEYS": keys}
    command = [sys.executable, "-c", *container["args"]]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=180, check=False
    )


async def test_helm_test_says_whether_a_fleet_serves(redis: Redis, redis_url: str) -> None:
    async def run(keys: str) -> "subprocess.CompletedProcess[str]":
        async with live(redis, api_keys="ci:hush-1,hush-2") as (client, _):
            return await asyncio.to_thread(smoke_test, str(client.base_url).rstrip("/"), keys)

    without_worker = await run("ci:hush-1")
    async with EchoWorker(redis_url):
        served = await run("ci:hush-1, hush-2")
        with_wrong_key = await run("wrong")

    assert without_worker.returncode == 1
    assert "no worker is ready" in without_worker.stderr
    assert served.returncode == 0
    assert served.stderr == ""
    assert "completions" in served.stdout
    assert with_wrong_key.returncode == 1
    assert "401" in with_wrong_key.stderr


def test_redis_takes_the_arguments_it_is_given(tmp_path: Path) -> None:
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("no redis-server here")
    pods = dict(release_of(CHART / "ci" / "keda.yaml").pods())
    (container,) = pods["demo-aios-fleet-redis"]["containers"]
    replaced = {"/data": str(tmp_path), "$(REDISCLI_AUTH)": "hush"}
    args = [replaced.get(arg, arg) for arg in container["args"]]
    port = free_port()

    process = subprocess.Popen([server, *args, "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        client = BlockingRedis(port=port, password="hush", socket_timeout=180)
        wait_until(lambda: _answers(client), "redis answers")
        config = client.config_get("*")
        assert config["maxmemory"] == str(768 << 20)
        assert config["maxmemory-policy"] == "noeviction"
        assert config["appendonly"] == "yes"
        with pytest.raises(AuthenticationError):
            BlockingRedis(port=port).ping()
    finally:
        process.terminate()
        try:
            process.wait(timeout=180)
        finally:
            process.kill()
            process.wait()
    assert list(tmp_path.glob("appendonly*"))


def _answers(client: BlockingRedis) -> bool:
    try:
        return bool(client.ping())
    except ConnectionError:
        return False
