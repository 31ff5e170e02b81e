"""`aios dead`: list, show, retry and drop jobs that were given up because their workers crashed."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from scripts.cli.colours import listing
from scripts.cli.fleet_tool import FleetFlags, ToolError, fleet_flags, run_tool
from scripts.cli.watch.table import Heading
from shared.commands import Argument, Command, Group
from shared.errors import FleetError
from shared.queue.broker import open_broker
from shared.queue.dead_letters import DeadLetter, DeadLetters
from shared.settings.command_line import redis_url
from shared.settings.settings import Settings

PROG = "aios dead"
_HEADINGS = (
    Heading("ID", is_name=True),
    Heading("AT", is_name=True),
    Heading("MODEL", is_name=True, least=8),
    Heading("TENANT", rank=2, is_name=True, least=8),
    Heading("WORKERS"),
    Heading("LAST WORKER", rank=1, is_name=True),
)


@click.pass_obj
def list_all(flags: FleetFlags) -> int:
    """Print all dead letters and return the exit status."""

    async def answer(letters: DeadLetters, settings: Settings) -> list[str]:
        found = await letters.all_letters()
        if flags.json:
            return [json.dumps(_as_json(letter)) for letter in found]
        rows = [_row(letter) for letter in found]
        lines = [_line(letter) for letter in found]
        return listing(_HEADINGS, rows, lines, none="no dead jobs")

    return _run(flags, answer)


@click.pass_obj
def show(flags: FleetFlags, id: str) -> int:
    """Print a dead letter with its task and its log, and return the exit status."""

    async def answer(letters: DeadLetters, settings: Settings) -> list[str]:
        letter, job, events = await letters.show(id)
        document = _as_json(letter)
        document["task"] = msgspec.to_builtins(job.task)
        document["log"] = msgspec.to_builtins(events)
        indent = None if flags.json else 2
        return [json.dumps(document, ensure_ascii=False, indent=indent)]

    return _run(flags, answer)


@click.pass_obj
def retry(flags: FleetFlags, id: str) -> int:
    """Queue the task again, print the id of the new job, and return the exit status."""

    async def answer(letters: DeadLetters, settings: Settings) -> list[str]:
        new_id = await letters.retry(
            id,
            queue_timeout_s=settings.queue_timeout_s,
            deadline_s=settings.request_timeout_s,
        )
        return [json.dumps({"id": new_id}) if flags.json else new_id]

    return _run(flags, answer)


@click.pass_obj
def drop(flags: FleetFlags, id: str) -> int:
    """Forget a dead letter and return the exit status."""

    async def answer(letters: DeadLetters, settings: Settings) -> list[str]:
        await letters.drop(id)
        return [json.dumps({"dropped": id})] if flags.json else []

    return _run(flags, answer)


Answer = Callable[[DeadLetters, Settings], Awaitable[list[str]]]


def _run(flags: FleetFlags, answer: Answer) -> int:
    """Print the lines of `answer` and return the exit status.

    It is 1, with a line on stderr, if there is no such job or if Redis is unavailable.
    """

    async def answered(settings: Settings) -> list[str]:
        async with open_broker(redis_url(settings), settings.redis_shards) as broker:
            try:
                return await answer(DeadLetters(broker), settings)
            except FleetError as error:
                reason = str(error).rstrip(".")
                raise ToolError(f"{reason}; `{PROG} list` tells which there are") from error

    return run_tool(PROG, flags, answered)


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    """Return the fields of a dead letter without its place in Redis, and its time in ISO 8601."""
    values = asdict(letter)
    del values["entry"]
    values["at"] = _time(letter)
    return values


def _row(letter: DeadLetter) -> list[str]:
    return [
        letter.id,
        _time(letter),
        letter.model,
        letter.tenant,
        f"{letter.epochs}",
        letter.worker,
    ]


def _line(letter: DeadLetter) -> str:
    return (
        f"{letter.id}  {_time(letter)}  {letter.model}  {letter.tenant}  "
        f"{letter.epochs} workers, the last {letter.worker}"
    )


def _time(letter: DeadLetter) -> str:
    return datetime.fromtimestamp(letter.at_ms / 1000, UTC).isoformat(timespec="seconds")


def _of_one(name: str, callback: Callable[..., int], help: str) -> Command:
    """Return a command on one dead letter."""
    params = [Argument("id", help="of the job, as listed"), *fleet_flags()]
    examples = (f"aios dead {name} 0199c1a2",)
    return Command(name, callback=callback, params=params, help=help, examples=examples)


command = Group(
    "dead",
    params=fleet_flags(),
    help="Jobs that were given up because their workers crashed.",
    examples=("aios dead list", "aios dead list --json | jq -r .id"),
    commands={
        "list": Command(
            "list",
            callback=list_all,
            params=fleet_flags(),
            help="All of them, the latest first.",
            examples=("aios dead list", "aios dead list --json | jq -r .id"),
        ),
        "show": _of_one("show", show, "Its task and its log."),
        "retry": _of_one("retry", retry, "Queue its task again, and print the id of the new job."),
        "drop": _of_one("drop", drop, "Forget it."),
    },
)
