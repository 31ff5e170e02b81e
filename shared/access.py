"""API keys, the grant of each, and the keys in Redis that operators have made.

A key is 256 random bits, so its plain SHA-256 tells nothing of it; Redis holds only that. A key
that is revoked or has expired is gone from Redis, and so from all fronts at once. Redis still knows
that there has been one.
"""

import hashlib
import re
import secrets
from collections.abc import Awaitable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Literal, cast

import msgspec

from shared.messages import PRIORITIES, Priority
from shared.queue import keys
from shared.queue.broker import Broker

ID_LENGTH = 12
KEY_PREFIX = "aios_"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Rate(msgspec.Struct, frozen=True):
    """At most so many `times` in any `seconds`."""

    times: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.times}/{self.seconds}"


BudgetPeriod = Literal["day", "month"]


class Budget(msgspec.Struct, frozen=True):
    """At most so many `tokens`, of prompts and answers, in each day or month of UTC."""

    tokens: int
    period: BudgetPeriod

    def __str__(self) -> str:
        return f"{self.tokens} a {self.period}"

    def starts_ms(self, now: datetime) -> list[int]:
        """Return when the periods around `now` begin: the one before, its own and the next two.

        In milliseconds since 1970. The clock of Redis may be a little ahead of this one, or behind.
        """
        day = now.astimezone(UTC).date()
        starts = []
        for distance in (-1, 0, 1, 2):
            if self.period == "day":
                start = day + timedelta(days=distance)
            else:
                months = day.year * 12 + day.month - 1 + distance
                start = date(months // 12, months % 12 + 1, 1)
            starts.append(int(datetime(start.year, start.month, start.day, tzinfo=UTC).timestamp()))
        return [1000 * start for start in starts]


class Grant(msgspec.Struct, frozen=True, omit_defaults=True):
    """The rights of a key. `name` is for people; keys of one `tenant` see each other's jobs.

    With `concurrency` 0 and `rate` None the fleet's own limits hold. Without `models` all models
    may be used. Without a `budget` any number of tokens may be used.
    `created_at` and `expires_at` are in seconds since 1970.
    """

    name: str
    tenant: str
    best_priority: Priority = "interactive"
    rate: Rate | None = None
    concurrency: int = 0
    models: tuple[str, ...] = ()
    is_admin: bool = False
    created_at: int = 0
    expires_at: int | None = None
    budget: Budget | None = None


def rate_of(text: str) -> Rate:
    """Return the rate that a text such as `10/60` means: ten times in sixty seconds.

    Raise ValueError for another text.
    """
    times, slash, seconds = text.partition("/")
    # isdigit alone would let other digits in, such as ².
    are_numbers = text.isascii() and times.isdigit() and seconds.isdigit()
    if not (slash and are_numbers):
        raise ValueError(f"expected times/seconds, such as 10/60, got {text!r}")
    if not (0 < int(times) < 10**6 and 0 < int(seconds) < 10**6):
        raise ValueError(f"expected times and seconds from 1 to 999999, got {text!r}")
    return Rate(int(times), int(seconds))


def check_name(text: str) -> str:
    """Return a name or tenant that may become part of keys in Redis. Raise ValueError if not."""
    if not NAME.fullmatch(text):
        raise ValueError(
            f"expected up to 64 letters, digits, dots, underscores and dashes, got {text!r}"
        )
    return text


def check_priority(text: str) -> Priority:
    """Return the class with this name. Raise ValueError if there is none."""
    for name in PRIORITIES:
        if name == text:
            return name
    raise ValueError(f"expected one of {', '.join(PRIORITIES)}, got {text!r}")


def digest_of(key: str) -> str:
    """Return the digest that stands for a key wherever it is kept."""
    return hashlib.sha256(key.encode()).hexdigest()


class Keyring:
    """The keys in Redis. Its methods raise redis-py's errors."""

    def __init__(self, broker: Broker) -> None:
        self._redis = broker.client(keys.ACCESS)

    async def create(self, grant: Grant, *, lives_s: int | None = None) -> tuple[str, str, Grant]:
        """Make a key. Return the key, its id, and the grant as it is kept.

        Nothing tells the key itself again. It expires after `lives_s` seconds of Redis's clock;
        None is never.
        """
        key = f"{KEY_PREFIX}{secrets.token_urlsafe(32)}"
        digest = digest_of(key)
        now, _ = await cast(Awaitable[tuple[int, int]], self._redis.time())
        expires_at = None
        if lives_s is not None:
            expires_at = now + lives_s
        grant = msgspec.structs.replace(grant, created_at=now, expires_at=expires_at)
        pipe = self._redis.pipeline(transaction=True)
        pipe.set(keys.grant(digest), msgspec.msgpack.encode(grant), ex=lives_s)
        pipe.sadd(keys.GRANTS, digest)
        pipe.set(keys.KEYS_MADE, 1)
        await pipe.execute()
        return key, id_of(digest), grant

    async def has_made_keys(self) -> bool:
        """Return whether a key has ever been made here.

        A key that was revoked or has expired counts: a fleet that had keys does not open again when
        it loses the last one.
        """
        count = self._redis.exists(keys.KEYS_MADE, keys.GRANTS)
        return bool(await cast(Awaitable[int], count))

    async def find(self, digest: str) -> Grant | None:
        """Return the grant of the key with this digest; None if it is unknown or holds no more."""
        packed = await cast(Awaitable[bytes | None], self._redis.get(keys.grant(digest)))
        if packed is None:
            return None
        return msgspec.msgpack.decode(packed, type=Grant)

    async def find_all(self, digests: Sequence[str]) -> dict[str, Grant]:
        """Return the grants of several keys by digest, without those that do not hold."""
        if not digests:
            return {}
        answers = await self._redis.mget([keys.grant(digest) for digest in digests])
        grants = {}
        for digest, packed in zip(digests, answers, strict=True):
            if packed is not None:
                grants[digest] = msgspec.msgpack.decode(packed, type=Grant)
        return grants

    async def all_grants(self) -> dict[str, Grant]:
        """Return all grants that hold, by digest, the oldest first.

        Take the digests of expired grants off the list.
        """
        members = await cast(Awaitable[set[bytes]], self._redis.smembers(keys.GRANTS))
        digests = sorted(member.decode() for member in members)
        grants = await self.find_all(digests)

        # A grant expires by itself, but the members of a set do not.
        gone = [digest for digest in digests if digest not in grants]
        if gone:
            await self._take_off_list(gone)

        def age(digest: str) -> tuple[float, str]:
            grant = grants[digest]
            return (grant.created_at, grant.name)

        return {digest: grants[digest] for digest in sorted(grants, key=age)}

    async def find_id(self, id: str) -> str | None:
        """Return the digest of the key with this id; None if no key that holds has it.

        A longer beginning of a digest, or a whole one, is good, too. One that several keys share
        is not.
        """
        if len(id) < ID_LENGTH:
            return None
        matches = [digest for digest in await self.all_grants() if digest.startswith(id)]
        return matches[0] if len(matches) == 1 else None

    async def revoke(self, digest: str) -> None:
        """Delete the grant of a key, so that the key holds no more."""
        await self._redis.delete(keys.grant(digest))
        await self._take_off_list([digest])

    async def _take_off_list(self, digests: Sequence[str]) -> None:
        """Take keys that do not hold off the list."""
        # Older versions did not note that keys had been made: the list was their only trace.
        pipe = self._redis.pipeline(transaction=True)
        pipe.set(keys.KEYS_MADE, 1)
        pipe.srem(keys.GRANTS, *digests)
        await pipe.execute()


def id_of(digest: str) -> str:
    """Return the id by which people name a key: the beginning of its digest."""
    return digest[:ID_LENGTH]
