"""`aios keys`: create, list and revoke the API keys of a fleet, with their limits.

Changes hold at once on all fronts; no front is restarted.
"""

import json
import re
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any, get_args

import click

from scripts.cli.colours import listing
from scripts.cli.fleet_tool import FleetFlags, ToolError, fleet_flags, run_tool
from scripts.cli.watch.table import Heading
from shared.access import (
    KEY_PREFIX,
    Budget,
    BudgetPeriod,
    Grant,
    Keyring,
    check_name,
    check_priority,
    digest_of,
    id_of,
    rate_of,
)
from shared.commands import Argument, Command, Flag, Group, completing
from shared.messages import PRIORITIES
from shared.queue.broker import Broker, open_broker
from shared.queue.usage_ledger import BudgetStanding, UsageLedger
from shared.settings.command_line import redis_url
from shared.settings.settings import Settings

PROG = "aios keys"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@click.pass_obj
def create(flags: FleetFlags, /, name: str, expires: int | None, **limits: Any) -> int:
    """Make a key, print it, and return the exit status."""
    budget = None
    if limits["budget"] is not None:
        budget = Budget(limits["budget"], limits["budget_period"])
    grant = Grant(
        name=name,
        tenant=limits["tenant"] or name,
        best_priority=limits["best_class"],
        rate=limits["rate"],
        concurrency=limits["concurrency"] or 0,
        models=limits["models"] or (),
        is_admin=limits["admin"],
        budget=budget,
    )

    async def answer(settings: Settings) -> list[str]:
        async with _broker(settings) as broker:
            key, key_id, made = await Keyring(broker).create(grant, lives_s=expires)
        if flags.json:
            return [json.dumps({"key": key, **_as_json(key_id, made)})]
        return [key]

    return run_tool(PROG, flags, answer)


@click.pass_obj
def list_all(flags: FleetFlags) -> int:
    """Print all keys that hold, and return the exit status."""

    async def answer(settings: Settings) -> list[str]:
        rows = []
        lines = []
        async with _broker(settings) as broker:
            for digest, grant in (await Keyring(broker).all_grants()).items():
                key_id = id_of(digest)
                if flags.json:
                    lines.append(json.dumps(_as_json(key_id, grant)))
                    continue
                standing = None
                if grant.budget is not None:
                    standing = await UsageLedger(broker).standing(key_id, grant.budget)
                lines.append(_line(key_id, grant, standing))
                rows.append(_row(key_id, grant, standing))
        if flags.json:
            return lines
        return listing(_HEADINGS, rows, lines, none="no keys")

    return run_tool(PROG, flags, answer)


@click.pass_obj
def revoke(flags: FleetFlags, id: str) -> int:
    """Revoke a key and return the exit status."""

    async def answer(settings: Settings) -> list[str]:
        async with _broker(settings) as broker:
            keyring = Keyring(broker)
            digest = await _find(keyring, id)
            await keyring.revoke(digest)
        return [json.dumps({"revoked": id_of(digest)})] if flags.json else []

    return run_tool(PROG, flags, answer)


def _broker(settings: Settings) -> AbstractAsyncContextManager[Broker]:
    return open_broker(redis_url(settings), settings.redis_shards)


async def _find(keyring: Keyring, id_or_key: str) -> str:
    """Return the digest of the key with this id, or of this key itself.

    Raise ToolError if there is none, or more than one.
    """
    id = id_or_key
    if id_or_key.startswith(KEY_PREFIX):
        id = digest_of(id_or_key)
    digest = await keyring.find_id(id)
    if digest is None:
        raise ToolError(
            "no such key: expected an id as `aios keys list` shows it, or a key that holds"
        )
    return digest


def _as_json(key_id: str, grant: Grant) -> dict[str, Any]:
    """Return a key's id and the fields of its grant, with times in ISO 8601."""
    values: dict[str, Any] = {"id": key_id}
    for name in grant.__struct_fields__:
        values[name] = getattr(grant, name)
    if grant.rate:
        values["rate"] = str(grant.rate)
    if grant.budget:
        values["budget"] = {"tokens": grant.budget.tokens, "period": grant.budget.period}
    values["created_at"] = _time(grant.created_at)
    if grant.expires_at:
        values["expires_at"] = _time(grant.expires_at)
    return values


_HEADINGS = (
    Heading("ID", is_name=True),
    Heading("NAME", is_name=True, least=8),
    Heading("TENANT", rank=6, is_name=True, least=8),
    Heading("BEST CLASS", rank=4, is_name=True),
    Heading("RATE", rank=5),
    Heading("OPEN JOBS", rank=3),
    Heading("BUDGET", rank=5, is_name=True),
    Heading("MODELS", rank=2, is_name=True, least=8),
    Heading("ADMIN", is_name=True),
    Heading("MADE", rank=1, is_name=True),
    Heading("UNTIL", rank=7, is_name=True),
)


def _row(key_id: str, grant: Grant, standing: BudgetStanding | None) -> list[str]:
    """Return the cells of a key on a terminal. A limit that it does not have is a dash."""
    budget = "-"
    if standing is not None:
        budget = f"{standing.used} of {grant.budget}"
    return [
        key_id,
        grant.name,
        grant.tenant,
        grant.best_priority,
        str(grant.rate or "-"),
        str(grant.concurrency or "-"),
        budget,
        ",".join(grant.models) or "all",
        "yes" if grant.is_admin else "-",
        _time(grant.created_at),
        _time(grant.expires_at) if grant.expires_at else "-",
    ]


def _line(key_id: str, grant: Grant, standing: BudgetStanding | None) -> str:
    parts = [key_id, grant.name, f"tenant {grant.tenant}", f"best class {grant.best_priority}"]
    if grant.rate:
        parts.append(f"rate {grant.rate}")
    if grant.concurrency:
        parts.append(f"concurrency {grant.concurrency}")
    if standing is not None:
        parts.append(f"budget {grant.budget}: {standing.used} used, {standing.reserved} reserved")
    if grant.models:
        parts.append(f"models {','.join(grant.models)}")
    if grant.is_admin:
        parts.append("admin")
    parts.append(f"made {_time(grant.created_at)}")
    if grant.expires_at:
        parts.append(f"until {_time(grant.expires_at)}")
    return "  ".join(parts)


def _time(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise ValueError(f"expected a number, at least 1, got {text!r}")
    return int(text)


def _tokens(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,14}", text):
        raise ValueError(f"expected a number of tokens, at least 1, got {text!r}")
    return int(text)


def _models(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ValueError("expected ids of models, comma-separated")
    return names


def _seconds(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,6}[smhd]", text):
        raise ValueError(f"expected a number and s, m, h or d, such as 30d, got {text!r}")
    return int(text[:-1]) * _SECONDS[text[-1]]


command = Group(
    "keys",
    params=fleet_flags(),
    help="""Who may call the fleet, and how much.

Changes hold at once on all fronts; no front is restarted.""",
    examples=(
        "aios keys create alice",
        "aios keys create nightly --best-class bulk --rate 10/60 --budget 1000000 --expires 30d",
        "aios keys list",
    ),
    commands={
        "create": Command(
            "create",
            callback=create,
            params=[
                Argument(
                    "name", type=check_name, help="whose it is, for people; keys may share a name"
                ),
                Flag(
                    "--tenant",
                    type=check_name,
                    metavar="NAME",
                    help="whose jobs it sees (default: the name)",
                ),
                Flag("--admin", is_flag=True, help="admin routes too"),
                Flag(
                    "--expires",
                    type=_seconds,
                    metavar="TIME",
                    help="how long it holds: 90s, 15m, 12h, 30d",
                ),
                Flag(
                    "--best-class",
                    type=check_priority,
                    default="interactive",
                    metavar="CLASS",
                    shell_complete=completing(PRIORITIES),
                    help="the best X-Priority (default: interactive)",
                    section="Limits",
                ),
                Flag(
                    "--rate",
                    type=rate_of,
                    metavar="TIMES/SECONDS",
                    help="requests for work, as 10/60",
                    section="Limits",
                ),
                Flag(
                    "--concurrency",
                    type=_count,
                    metavar="N",
                    help="open jobs of its tenant before 429",
                    section="Limits",
                ),
                Flag(
                    "--budget",
                    type=_tokens,
                    metavar="TOKENS",
                    help="tokens of prompts and answers in a period before 429",
                    section="Limits",
                ),
                Flag(
                    "--budget-period",
                    type=click.Choice(get_args(BudgetPeriod)),
                    default="month",
                    help="the period of the budget, in UTC (default: month)",
                    section="Limits",
                ),
                Flag(
                    "--models",
                    type=_models,
                    metavar="ID,ID",
                    help="the only models it may use",
                    section="Limits",
                ),
                *fleet_flags(),
            ],
            help="Make a key. It is shown once and never again.",
            examples=(
                "aios keys create alice",
                "aios keys create nightly --best-class bulk --rate 10/60 --expires 30d",
                "aios keys create ops --admin",
            ),
        ),
        "list": Command(
            "list",
            callback=list_all,
            params=fleet_flags(),
            help="All keys that hold, the oldest first.",
            examples=("aios keys list", "aios keys list --json | jq -r .id"),
        ),
        "revoke": Command(
            "revoke",
            callback=revoke,
            params=[Argument("id", help="as listed, or the key itself"), *fleet_flags()],
            help="From now on the key opens nothing, on all fronts.",
            examples=("aios keys revoke 3f9c2ab1d704",),
        ),
    },
)
