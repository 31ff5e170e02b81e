"""What the chart only hands on, tried for real: the script of `helm test` on a front, Redis's
arguments on a Redis."""

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
from tests.fixtures.polling import wait_until
from tests.fixtures.redis_server import free_port


def smoke_test(url: str, keys: str) -> "subprocess.CompletedProcess[str]":
    """As the Pod runs it."""
    pods = dict(release_of(CHART / "ci" / "external-redis.yaml").pods())
    (container,) = pods["demo-aios-fleet-test"]["containers"]
    assert container["command"] == ["python", "-c"]
    env = os.environ | {"FRONT_URL": url, "AIOS_API_KEYS": keys}
    assert {item["name"] for item in container["env"]} == {"FRONT_URL", "AIOS_API_KEYS"}
    command = [sys.executable, "-c", *container["args"]]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=180, check=False
    )


async def test_helm_test_says_whether_a_fleet_serves(redis: Redis, redis_url: str) -> None:
    async def ask(keys: str) -> "subprocess.CompletedProcess[str]":
        async with live(redis, api_keys="ci:hush-1,hush-2") as (client, _):
            return await asyncio.to_thread(smoke_test, str(client.base_url).rstrip("/"), keys)

    alone = await ask("ci:hush-1")
    async with EchoWorker(redis_url):
        well = await ask("ci:hush-1, hush-2")
        stranger = await ask("wrong")
    assert (well.returncode, well.stderr) == (0, "")
    assert "completions" in well.stdout
    assert alone.returncode == stranger.returncode == 1
    assert "no worker is ready" in alone.stderr
    assert "401" in stranger.stderr


def test_redis_takes_the_arguments_it_is_given(tmp_path: Path) -> None:
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("no redis-server here")
    pods = dict(release_of(CHART / "ci" / "keda.yaml").pods())
    (container,) = pods["demo-aios-fleet-redis"]["containers"]
    args = [
        {"/data": str(tmp_path), "$(REDISCLI_AUTH)": "hush"}.get(arg, arg)
        for arg in container["args"]
    ]
    port = free_port()
    process = subprocess.Popen([server, *args, "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        client = BlockingRedis(port=port, password="hush", socket_timeout=180)
        wait_until(lambda: _answers(client), "redis answers")
        wanted = {
            "maxmemory": str(768 << 20),
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
        }
        assert wanted.items() <= client.config_get("*").items()
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
