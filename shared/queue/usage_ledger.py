"""The usage of API keys: what the jobs of each key have used, by model and day.

The script that ends a job counts what the job has used, so each job is counted once, whatever
becomes of its workers and fronts. A job counts on the day, in UTC, on which it ends.
"""

import asyncio
import csv
import io
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, Self, cast, get_args

from redis.asyncio import Redis

from shared.access import Budget
from shared.queue import keys
from shared.queue.broker import Broker

UsageField = Literal["day", "tenant", "key", "model"]
"""A field by which usage may be grouped."""

USAGE_FIELDS: tuple[UsageField, ...] = get_args(UsageField)

_FIELD_OF: dict[str, UsageField] = {field: field for field in USAGE_FIELDS}
_EPOCH = date(1970, 1, 1)
_MS_A_SECOND = 1000
# So many keys are read at once: a server answers others in between.
_BATCH = 500


@dataclass(frozen=True)
class Usage:
    """The sums over jobs that have ended, by the names of the counters in Redis.

    A request of several jobs, one for each prompt, counts once. `jobs` includes those that failed
    or were cancelled. `cached_tokens` are among `prompt_tokens`. `act_segments` are those of
    puzzles. `compute_ms` is the time from the first take of a job to its end.
    """

    requests: int = 0
    jobs: int = 0
    failed_jobs: int = 0
    cancelled_jobs: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    act_segments: int = 0
    compute_ms: int = 0
    artifact_bytes: int = 0

    def __add__(self, other: Self) -> "Usage":
        return Usage(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def as_json(self) -> dict[str, int | float]:
        """Return the sums by their names for people, with the time in seconds."""
        values: dict[str, int | float] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "compute_ms":
                values["compute_seconds"] = value / _MS_A_SECOND
            else:
                values[field.name] = value
        return values


USAGE_COLUMNS = tuple(Usage().as_json())


@dataclass(frozen=True)
class UsageRow:
    """The usage of one model by one key on one day. `key` is the id of the key, "" without one."""

    day: date
    tenant: str
    key: str
    model: str
    usage: Usage


@dataclass(frozen=True)
class UsageGroup:
    """The usage of all rows that have these `values` of the fields by which they are grouped."""

    values: tuple[str, ...]
    usage: Usage


@dataclass(frozen=True)
class BudgetStanding:
    """The tokens of a budget in the present period: those used, and those reserved for open jobs.

    The next period begins at `resets_at`.
    """

    used: int
    reserved: int
    left: int
    resets_at: datetime


class UsageLedger:
    """Reads the usage, and how budgets stand. Its methods raise redis-py's errors."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def today(self) -> date:
        """Return the day by Redis's clock, in UTC."""
        seconds, _ = await self._broker.client(self._broker.shards[0]).time()
        return datetime.fromtimestamp(int(seconds), UTC).date()

    async def standing(self, key: str, budget: Budget) -> BudgetStanding:
        """Return how the budget of a key stands.

        With several shards, jobs that have just ended may count as open for a second.
        """
        home = self._broker.admission
        client = self._broker.client(home)
        seconds, _ = await client.time()
        _, start_ms, end_ms, _ = budget.starts_ms(datetime.fromtimestamp(int(seconds), UTC))
        name = keys.budget(home, key, start_ms)
        reading = client.hmget(name, ["used", "reserved"])
        used, reserved = await cast(Awaitable[list[bytes | None]], reading)
        num_used = int(used or 0)
        num_reserved = int(reserved or 0)
        return BudgetStanding(
            used=num_used,
            reserved=num_reserved,
            left=max(0, budget.tokens - num_used - num_reserved),
            resets_at=datetime.fromtimestamp(end_ms / _MS_A_SECOND, UTC),
        )

    async def read(
        self, first: date, last: date, *, tenant: str | None = None, key: str | None = None
    ) -> list[UsageRow]:
        """Return the usage from the `first` day to the `last`, in the order of the rows' fields.

        That of one tenant, or of one of its keys, or of all (None).
        """
        days = range((first - _EPOCH).days, (last - _EPOCH).days + 1)
        parts = await self._broker.by_server(self._broker.shards)
        sums: dict[tuple[date, str, str, str], Usage] = {}
        for rows in await asyncio.gather(*[self._of_server(part, days, tenant) for part in parts]):
            for row in rows:
                if key is not None and row.key != key:
                    continue
                name = (row.day, row.tenant, row.key, row.model)
                sums[name] = sums.get(name, Usage()) + row.usage
        return [UsageRow(*name, usage=sums[name]) for name in sorted(sums)]

    async def _of_server(
        self, shards: Sequence[str], days: Sequence[int], tenant: str | None
    ) -> list[UsageRow]:
        """Return the rows of the shards of one server, those of each shard by themselves."""
        client = self._broker.client(shards[0])
        all_days = [(shard, day) for shard in shards for day in days]
        owned: list[tuple[str, int, str]] = []
        if tenant is not None:
            owned = [(shard, day, tenant) for shard, day in all_days]
        else:
            names = [keys.usage_tenants(shard, day) for shard, day in all_days]
            tenants_of = await _read_all(client, "smembers", names)
            for (shard, day), tenants in zip(all_days, tenants_of, strict=True):
                owned += [(shard, day, owner.decode()) for owner in tenants]

        hashes: list[tuple[str, int, str, str]] = []
        rows_of = await _read_all(client, "smembers", [keys.usage_rows(*name) for name in owned])
        for (shard, day, owner), names_of_rows in zip(owned, rows_of, strict=True):
            hashes += [(shard, day, owner, row.decode()) for row in names_of_rows]

        found = []
        counters_of = await _read_all(client, "hgetall", [keys.usage(*name) for name in hashes])
        for (_, day, owner, row), counters in zip(hashes, counters_of, strict=True):
            # A model may have a colon in its name; a key's id has none.
            key, _, model = row.partition(":")
            on_day = _EPOCH + timedelta(days=day)
            found.append(UsageRow(on_day, owner, key, model, _usage(counters)))
        return found


async def _read_all(client: Redis, command: str, names: Sequence[str]) -> list[Any]:
    """Return what the command answers for each name."""
    answers: list[Any] = []
    for start in range(0, len(names), _BATCH):
        pipe = client.pipeline(transaction=False)
        for name in names[start : start + _BATCH]:
            getattr(pipe, command)(name)
        answers += await pipe.execute()
    return answers


def _usage(counters: dict[bytes, bytes]) -> Usage:
    known = {field.name for field in fields(Usage)}
    counts = {}
    for name, count in counters.items():
        # A newer version may count more.
        if name.decode() in known:
            counts[name.decode()] = int(count)
    return Usage(**counts)


def usage_fields(text: str) -> list[UsageField]:
    """Return the fields that a text such as `day,model` names.

    Raise ValueError for another text.
    """
    found: list[UsageField] = []
    for name in text.split(","):
        field = _FIELD_OF.get(name.strip())
        if field is None or field in found:
            known = ", ".join(USAGE_FIELDS)
            raise ValueError(f"expected some of {known}, comma-separated, got {text!r}")
        found.append(field)
    return found


def total(rows: Iterable[UsageRow]) -> Usage:
    """Return the sum of all rows."""
    usage = Usage()
    for row in rows:
        usage += row.usage
    return usage


def grouped(rows: Iterable[UsageRow], by: Sequence[UsageField]) -> list[UsageGroup]:
    """Return the sums of the rows that have equal values of the fields `by`, in their order."""
    sums: dict[tuple[str, ...], Usage] = {}
    for row in rows:
        values = tuple(str(getattr(row, field)) for field in by)
        sums[values] = sums.get(values, Usage()) + row.usage
    return [UsageGroup(values, sums[values]) for values in sorted(sums)]


def as_csv(groups: Iterable[UsageGroup], by: Sequence[UsageField]) -> str:
    """Return the groups as CSV (RFC 4180), with a line of the columns' names first."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*by, *USAGE_COLUMNS])
    for group in groups:
        writer.writerow([*group.values, *group.usage.as_json().values()])
    return text.getvalue()
