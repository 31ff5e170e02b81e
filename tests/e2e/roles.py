"""Roles as processes of their own, and the lines that they log."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.polling import DEADLINE_S


@asynccontextmanager
async def running(role: str, *flags: str, **env: str) -> AsyncIterator[list[str]]:
    """The lines that a process of this role has logged; ended by SIGTERM."""
    command = [sys.executable, "-m", role, *flags]
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        stdout=-1,
        stderr=asyncio.subprocess.STDOUT,
    )
    lines: list[str] = []

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            lines.append(line.decode().rstrip("\n"))

    reading = asyncio.create_task(read())
    try:
        yield lines
        process.terminate()
        await asyncio.wait_for(process.wait(), DEADLINE_S)
    finally:
        if process.returncode is None:
            process.kill()
        await reading
