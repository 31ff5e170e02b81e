"""docs/operations.md, followed by the letter: its commands for a fleet at work do what it says."""

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

import httpx
from redis.asyncio import Redis

from shared.shipped import REPO_ROOT
from tests.fixtures.e2e.fleet import front, start_worker
from tests.fixtures.polling import DEADLINE_S
from tests.fixtures.redis_server import free_port

PAGE = (REPO_ROOT / "docs" / "operations.md").read_text()
SAMPLE = "sample=models/sample-hrm-text"
ADMIN = "admin-key"
STAYS = ("aios api", "aios worker --worker-port", "aios worker --model", "aios jobs")
"""Commands that start a role."""
NEEDS_AN_ID = ("aios dead show", "aios dead retry", "aios worker --dry-run ...", "aios keys revoke")


def commands() -> list[str]:
    """The lines of its shell blocks that speak to the fleet, without what they are said to
    print."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", PAGE, re.DOTALL | re.MULTILINE)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [
        line
        for line in lines
        if line.startswith(("aios ", "curl ")) and not line.startswith(STAYS + NEEDS_AN_ID)
    ]


async def run(command: str, env: dict[str, str]) -> str:
    """What it prints; it must end with 0."""
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
        cwd=REPO_ROOT,
    )
    out, err = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0, (command, err.decode())
    return out.decode()


def test_the_commands_are_found() -> None:
    found = commands()
    assert len(found) > 12
    for beginning in (
        "aios status",
        "aios keys list",
        "aios dead list",
        "curl -s localhost:9090/readyz",
        "curl -si",
    ):
        assert any(command.startswith(beginning) for command in found), beginning


async def test_its_commands_work_on_a_fleet(redis_url: str, redis: Redis, tmp_path: Path) -> None:
    """Each ends with 0; those whose output it shows print that."""
    (tmp_path / "aios").write_text(f'#!/bin/sh\nexec {sys.executable} -m scripts.cli.aios "$@"\n')
    (tmp_path / "aios").chmod(0o755)
    port = free_port()
    async with front(redis_url, "--admin-keys", f"ops:{ADMIN}", "--require-key", "no") as running:
        worker = await start_worker(
            redis_url, redis, "--worker-port", str(port), "--host", "127.0.0.1", model=SAMPLE
        )
        env = {
            **os.environ,
            "AIOS_REDIS_URL": redis_url,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "ADMIN_KEY": ADMIN,
        }
        told = {}
        await run(f"curl -s {running.url}/generate --json '{{}}'", env)  # an error to look for
        try:
            await running.ready()
            for command in commands():
                here = command.replace("localhost:8000", running.url.removeprefix("http://"))
                here = here.replace("localhost:9090", f"127.0.0.1:{port}").replace(
                    "unload/maths", "unload/sample"
                )
                told[command.partition(" -H")[0].partition(" --json")[0]] = await run(here, env)
        finally:
            await worker.end()
    assert told["curl -s localhost:8000/readyz"] == '{"status":"ready"}'
    assert told["curl -s localhost:9090/readyz"] == '{"status": "ready"}'
    assert "1 of 1 workers ready" in told["aios status"]
    assert re.match(
        r"d?[0-9a-f]{12}  ann  tenant ann  best class interactive  made ", told["aios keys list"]
    )
    assert "server-timing: queue;dur=" in told["curl -si localhost:8000/v1/completions"]
    assert (
        json.loads(told["curl -s -X POST localhost:8000/api/models/unload/maths"])["status"]
        == "unloaded"
    )


async def test_a_roll_of_workers_and_fronts(redis_url: str, redis: Redis) -> None:
    """The order of its upgrade: the old worker is told to stop when the new one is ready; then the
    front."""
    old = await start_worker(redis_url, redis)
    new = None
    try:
        async with front(redis_url) as first, httpx.AsyncClient(timeout=60) as http:
            await first.ready()
            asked = asyncio.create_task(
                http.post(f"{first.url}/generate", json={"prompts": ["abc"] * 8, "max_tokens": 200})
            )
            new = await start_worker(redis_url, redis)
            old.signal(signal.SIGTERM)
            assert await asyncio.wait_for(old.wait(), DEADLINE_S) == 0
            assert len((await asked).json()["completions"]) == 8
            async with front(redis_url) as second:
                await second.ready()
                first.process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(first.process.wait(), DEADLINE_S) == 0
                assert (
                    await http.post(f"{second.url}/generate", json={"prompts": ["abc"]})
                ).status_code == 200
    finally:
        await old.end()
        if new is not None:
            await new.end()
