"""`aios keys`: create, list and revoke the API keys of a fleet, with their limits.

Changes hold at once on all fronts; no front is restarted.
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar, get_args

from scripts.cli.fleet_tool import ToolError, flags, parser_of, run_tool
from shared.access import (
    ID_LENGTH,
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
from shared.queue.broker import open_broker
from shared.queue.usage_ledger import BudgetStanding, UsageLedger
from shared.settings.command_line import redis_url
from shared.settings.settings import Settings

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
        "--budget",
        type=_checked(_tokens),
        metavar="TOKENS",
        help="tokens of prompts and answers in a period before 429",
    )
    create.add_argument(
        "--budget-period",
        choices=get_args(BudgetPeriod),
        default="month",
        help="the period of the budget, in UTC (default: month)",
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


async def _answer(args: argparse.Namespace, settings: Settings) -> list[str]:
    """Carry out the command and return the lines to print."""
    async with open_broker(redis_url(settings), settings.redis_shards) as broker:
        keyring = Keyring(broker)
        match args.command:
            case "create":
                key, key_id, grant = await keyring.create(_grant(args), lives_s=args.expires)
                if args.json:
                    return [json.dumps({"key": key, **_as_json(key_id, grant)})]
                return [key]
            case "list":
                lines = []
                for digest, grant in (await keyring.all_grants()).items():
                    key_id = id_of(digest)
                    if args.json:
                        lines.append(json.dumps(_as_json(key_id, grant)))
                        continue
                    standing = None
                    if grant.budget is not None:
                        standing = await UsageLedger(broker).standing(key_id, grant.budget)
                    lines.append(_line(key_id, grant, standing))
                return lines
            case _:
                digest = await _find(keyring, args.id)
                await keyring.revoke(digest)
                if args.json:
                    return [json.dumps({"revoked": id_of(digest)})]
                return []


async def _find(keyring: Keyring, id_or_key: str) -> str:
    """Return the digest of the key with this id, or of this key itself.

    Raise ToolError if there is none, or more than one.
    """
    # An id is the beginning of a digest.
    prefix = id_or_key
    if id_or_key.startswith(KEY_PREFIX):
        prefix = digest_of(id_or_key)
    matches = []
    for digest in await keyring.all_grants():
        if len(prefix) >= ID_LENGTH and digest.startswith(prefix):
            matches.append(digest)
    if len(matches) != 1:
        raise ToolError(
            "no such key: expected an id as `aios keys list` shows it, or a key that holds"
        )
    return matches[0]


def _grant(args: argparse.Namespace) -> Grant:
    budget = None
    if args.budget is not None:
        budget = Budget(args.budget, args.budget_period)
    return Grant(
        name=args.name,
        tenant=args.tenant or args.name,
        best_priority=args.best_class,
        rate=args.rate,
        concurrency=args.concurrency,
        models=args.models,
        is_admin=args.admin,
        budget=budget,
    )


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


def _checked(check: Callable[[str], _T]) -> Callable[[str], _T]:
    """Return `check` with its ValueError as an ArgumentTypeError.

    argparse shows the text of an ArgumentTypeError, and hides that of a ValueError.
    """

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
