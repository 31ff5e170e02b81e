"""`aios keys`: who may call the fleet, and how much. Keys are made, listed and revoked; fronts need
no restart."""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from scripts.fleet_tool import ToolError, flags, parser_of, run_tool
from shared.access import (
    ID_LENGTH,
    KEY_MARK,
    Grant,
    Keyring,
    check_name,
    check_priority,
    digest_of,
    id_of,
    rate_of,
)
from shared.broker import open_broker
from shared.cli import redis_url
from shared.settings import Settings

PROG = "aios keys"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_T = TypeVar("_T")


def main(argv: Sequence[str]) -> int:
    """Run the command named by `argv`; return its exit status."""
    return run_tool(PROG, _parser().parse_args(argv), _answer)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(PROG, "Who may call the fleet, and how much.")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser(
        "create", parents=[flags()], help="make a key; it is shown once and never again"
    )
    create.add_argument(
        "name", type=_checked(check_name), help="whose it is, for people; keys may share a name"
    )
    create.add_argument(
        "--tenant", type=_checked(check_name), help="whose jobs it sees (default: the name)"
    )
    create.add_argument(
        "--best-class",
        type=_checked(check_priority),
        default="interactive",
        help="the best X-Priority",
    )
    create.add_argument(
        "--rate",
        type=_checked(rate_of),
        metavar="TIMES/SECONDS",
        help="requests for work, as 10/60",
    )
    create.add_argument(
        "--concurrency", type=_checked(_count), default=0, help="open jobs of its tenant before 429"
    )
    create.add_argument(
        "--models",
        type=_checked(_models),
        default=(),
        metavar="ID,ID",
        help="the only models it may use",
    )
    create.add_argument(
        "--expires",
        type=_checked(_seconds),
        metavar="TIME",
        help="how long it holds: 90s, 15m, 12h, 30d",
    )
    create.add_argument("--admin", action="store_true", help="admin routes too")
    commands.add_parser("list", parents=[flags()], help="all that hold, the oldest first")
    revoke = commands.add_parser(
        "revoke", parents=[flags()], help="from now on it opens nothing, on all fronts"
    )
    revoke.add_argument("id", help="as listed, or the key itself")
    return parser


async def _answer(asked: argparse.Namespace, settings: Settings) -> list[str]:
    """The lines to print."""
    async with open_broker(redis_url(settings), settings.redis_shards) as broker:
        keyring = Keyring(broker)
        match asked.command:
            case "create":
                key, key_id, grant = await keyring.create(_grant(asked), lives_s=asked.expires)
                return [json.dumps({"key": key, **_told(key_id, grant)}) if asked.json else key]
            case "list":
                grants = {
                    id_of(digest): grant for digest, grant in (await keyring.everyone()).items()
                }
                return [
                    json.dumps(_told(*item)) if asked.json else _line(*item)
                    for item in grants.items()
                ]
            case _:
                digest = await _find(keyring, asked.id)
                await keyring.revoke(digest)
                return [json.dumps({"revoked": id_of(digest)})] if asked.json else []


async def _find(keyring: Keyring, asked: str) -> str:
    """The digest of the one key that is meant. Raises ToolError."""
    wanted = digest_of(asked) if asked.startswith(KEY_MARK) else asked
    found = [
        digest
        for digest in await keyring.everyone()
        if len(wanted) >= ID_LENGTH and digest.startswith(wanted)
    ]
    if len(found) != 1:
        raise ToolError(
            "no such key: expected an id as `aios keys list` shows it, or a key that holds"
        )
    return found[0]


def _grant(asked: argparse.Namespace) -> Grant:
    return Grant(
        name=asked.name,
        tenant=asked.tenant or asked.name,
        best_priority=asked.best_class,
        rate=asked.rate,
        concurrency=asked.concurrency,
        models=asked.models,
        is_admin=asked.admin,
    )


def _told(key_id: str, grant: Grant) -> dict[str, Any]:
    return {"id": key_id, **{name: getattr(grant, name) for name in grant.__struct_fields__}} | {
        "rate": grant.rate and str(grant.rate),
        "created_at": _when(grant.created_at),
        "expires_at": grant.expires_at and _when(grant.expires_at),
    }


def _line(key_id: str, grant: Grant) -> str:
    parts = [key_id, grant.name, f"tenant {grant.tenant}", f"best class {grant.best_priority}"]
    parts += [f"rate {grant.rate}"] if grant.rate else []
    parts += [f"concurrency {grant.concurrency}"] if grant.concurrency else []
    parts += [f"models {','.join(grant.models)}"] if grant.models else []
    parts += ["admin"] if grant.is_admin else []
    parts += [f"made {_when(grant.created_at)}"]
    parts += [f"until {_when(grant.expires_at)}"] if grant.expires_at else []
    return "  ".join(parts)


def _when(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")


def _checked(check: Callable[[str], _T]) -> Callable[[str], _T]:
    """`check` as argparse wants it: what it raises is told."""

    def checked(text: str) -> _T:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise ValueError(f"expected a number, at least 1, got {text!r}")
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
