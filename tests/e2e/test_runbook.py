"""The commands of docs/operations.md for a running fleet do what the page says."""

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
SAMPLE = "sample=models/hrm-text-math"
ADMIN = "admin-key"
STAYS = ("aios api", "aios worker --worker-port", "aios worker --model", "aios jobs")
"""Commands that start a role."""
NEEDS_AN_ID = ("aios dead show", "aios dead retry", "aios worker --dry-run ...", "aios keys revoke")


def commands() -> list[str]:
    """Return the page's shell commands to a fleet, without the output in their comments."""
    lines = []
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", PAGE, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            command = line.split("  #")[0].strip()
            is_of_fleet = command.startswith(("aios ", "curl "))
            if is_of_fleet and not command.startswith(STAYS + NEEDS_AN_ID):
                lines.append(command)
    return lines


async def run(command: str, env: dict[str, str]) -> str:
    """Run a command, which must end with 0, and return its output."""
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
    lines = commands()
    assert len(lines) > 12
    for beginning in (
        "aios status",
        "aios keys list",
        "aios dead list",
        "curl -s localhost:9090/readyz",
        "curl -si",
    ):
        assert any(line.startswith(beginning) for line in lines), beginning


async def test_its_commands_work_on_a_fleet(redis_url: str, redis: Redis, tmp_path: Path) -> None:
    """Each command ends with 0 and prints the output that the page shows."""
    (tmp_path / "aios").write_text(f'#!/bin/sh\nexec {sys.executable} -m scripts.cli.aios "$@"\n')
    (tmp_path / "aios").chmod(0o755)
    port = free_port()
    async with front(redis_url, "--admin-keys", f"ops:{ADMIN}", "--require-key", "no") as running:
        flags = ("--worker-port", str(port), "--host", "127.0.0.1")
        worker = await start_worker(redis_url, redis, *flags, model=SAMPLE)
        env = {
            **os.environ,
            "AIOS_REDIS_URL": redis_url,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "ADMIN_KEY": ADMIN,
        }
        outputs = {}
        # The page looks for errors in the log, and this request is one.
        await run(f"curl -s {running.url}/generate --json '{{}}'", env)
        try:
            await running.ready()
            for command in commands():
                adapted = command.replace("localhost:8000", running.url.removeprefix("http://"))
                adapted = adapted.replace("localhost:9090", f"127.0.0.1:{port}")
                adapted = adapted.replace("unload/maths", "unload/sample")
                name = command.partition(" -H")[0].partition(" --json")[0]
                outputs[name] = await run(adapted, env)
        finally:
            await worker.end()

    assert outputs["curl -s localhost:8000/readyz"] == '{"status":"ready"}'
    assert outputs["curl -s localhost:9090/readyz"] == '{"status": "ready"}'
    assert "1 of 1 workers ready" in outputs["aios status"]
    key_line = r"d?[0-9a-f]{12}  ann  tenant ann  best class interactive  made "
    assert re.match(key_line, outputs["aios keys list"])
    assert "server-timing: queue;dur=" in outputs["curl -si localhost:8000/v1/completions"]
    unloaded = outputs["curl -s -X POST localhost:8000/api/models/unload/maths"]
    assert json.loads(unloaded)["status"] == "unloaded"


async def test_a_roll_of_workers_and_fronts(redis_url: str, redis: Redis) -> None:
    """The page's order of an upgrade loses no request.

    The old worker stops when the new one is ready, and the old front after that.
    """
    old = await start_worker(redis_url, redis)
    new = None
    try:
        async with front(redis_url) as first, httpx.AsyncClient(timeout=60) as http:
            await first.ready()
            body = {"prompts": ["abc"] * 8, "max_tokens": 200}
            asking = asyncio.create_task(http.post(f"{first.url}/generate", json=body))

            new = await start_worker(redis_url, redis)
            old.signal(signal.SIGTERM)
            assert await asyncio.wait_for(old.wait(), DEADLINE_S) == 0
            assert len((await asking).json()["completions"]) == 8

            async with front(redis_url) as second:
                await second.ready()
                first.process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(first.process.wait(), DEADLINE_S) == 0
                answer = await http.post(f"{second.url}/generate", json={"prompts": ["abc"]})
                assert answer.status_code == 200
    finally:
        await old.end()
        if new is not None:
            await new.end()
