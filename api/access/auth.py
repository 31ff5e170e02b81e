"""From the key in a request's headers to its caller.

Keys of the environment are known by this process; any other is looked for in Redis, once for each
request, so that one that is revoked or has expired is refused from that moment on. What is under
way then is ended by `api/access/revocations.py`.
"""

import asyncio
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import SecretStr
from starlette.datastructures import Headers

from api.access.caller import Caller
from api.redis_timeout import redis_answers
from shared.access import Grant, Keyring, Rate, digest_of, id_of, rate_of
from shared.errors import BrokerUnavailable, FleetError, Forbidden, Unauthorized
from shared.queue.broker import UNAVAILABLE, Broker
from shared.queue.submission import Quota
from shared.settings.layers import SettingsError
from shared.settings.settings import Settings

_BEARER = "Bearer"
_PLAIN = "X-API-Key"
Style = Literal["bearer", "x-api-key"]


@dataclass(frozen=True)
class CallerDefaults:
    """The quota and the rates of every caller, unless a key's grant says otherwise."""

    quota: Quota
    rate: Rate | None = None
    endpoint_rates: Mapping[str, Rate] | None = None

    def caller(self, id: str, grant: Grant, digest: str = "") -> Caller:
        rates = dict(self.endpoint_rates or {})
        rate = grant.rate or self.rate
        if rate:
            rates[""] = rate
        quota = self.quota
        if grant.concurrency:
            quota = replace(quota, concurrency=grant.concurrency)
        return Caller(
            tenant=grant.tenant,
            quota=quota,
            best_priority=grant.best_priority,
            id=id,
            models=frozenset(grant.models),
            rates=rates,
            is_admin=grant.is_admin,
            digest=digest,
        )


class FirstKey:
    """Knows whether a key has ever been made in Redis.

    That can only become true, and is not asked again then. Until then Redis is asked at most every
    `max_age_s`, by one reader for all requests. A read that fails is remembered as long, so a
    hanging Redis costs its time once.
    """

    def __init__(self, keyring: Keyring, *, max_age_s: float = 0.5) -> None:
        self.is_known = False
        self._keyring = keyring
        self._max_age_s = max_age_s
        self._reading: asyncio.Task[bool | None] | None = None
        self._expires_s = 0.0

    async def is_made(self) -> bool:
        """Return whether a key had been made at most `max_age_s` ago.

        Raise BrokerUnavailable when that is not known: nobody is let in then.
        """
        if self.is_known:
            return True
        is_old = asyncio.get_running_loop().time() >= self._expires_s
        if self._reading is None or (self._reading.done() and is_old):
            self._reading = asyncio.create_task(self._read(), name="first-key")
        is_made = await asyncio.shield(self._reading)
        if is_made is None:
            raise BrokerUnavailable(
                "Redis is not reachable, which knows whether keys are needed.", retry_after_s=1
            )
        self.is_known = is_made
        return is_made

    async def _read(self) -> bool | None:
        loop = asyncio.get_running_loop()
        as_of_s = loop.time()
        try:
            async with redis_answers():
                return await self._keyring.has_made_keys()
        except (BrokerUnavailable, *UNAVAILABLE):
            as_of_s = loop.time()
            return None
        finally:
            self._expires_s = as_of_s + self._max_age_s


class Auth:
    """Finds callers by their keys.

    `known` are the grants of the environment's keys, by digest. Where keys are not required anyway,
    they are as soon as a `first_key` has been made, if that is given.
    """

    def __init__(
        self,
        keyring: Keyring,
        known: Mapping[str, Grant],
        defaults: CallerDefaults,
        *,
        requires_key: bool,
        first_key: FirstKey | None = None,
        style: Style = "bearer",
    ) -> None:
        self.may_be_open = not requires_key and first_key is not None
        self._requires_key = requires_key
        self._first_key = first_key
        self._keyring = keyring
        self._known = known
        self._defaults = defaults
        self._style = style
        self._anonymous = defaults.caller("", Grant("public", "public"))

    async def caller(
        self, headers: Headers, *, needs_key: bool = False, needs_admin: bool = False
    ) -> Caller:
        """Return the caller who sent these headers.

        Raise Unauthorized, Forbidden, and BrokerUnavailable when Redis is needed and away.
        """
        header, key = _credentials(headers)
        caller = None
        if key:
            caller = await self._find(key)
        if caller is None:
            # Where keys are not needed an unknown one is no error: some clients always send one.
            if needs_key or needs_admin or await self.requires_key():
                raise self._refusal(header)
            return self._anonymous
        if needs_admin and not caller.is_admin:
            raise Forbidden("This needs an admin key.")
        return caller

    async def requires_key(self) -> bool:
        """Return whether a caller without a key is refused.

        Raise BrokerUnavailable when that is not known.
        """
        if self._first_key is None:
            return self._requires_key
        return self._requires_key or await self._first_key.is_made()

    def can_change(self, caller: Caller) -> bool:
        """Return whether the caller may be refused later, while this process runs."""
        if caller.digest:
            return True
        return not caller.id and self.may_be_open

    async def again(self, caller: Caller) -> Caller:
        """Return the caller with its rights as they are now. Raise as `caller` does."""
        [now] = await self.again_all([caller])
        if isinstance(now, FleetError):
            raise now
        return now

    async def again_all(self, callers: Sequence[Caller]) -> list[Caller | FleetError]:
        """Return each caller with its rights as they are now, or the error of one that has none.

        All keys are read from Redis at once. Raise BrokerUnavailable.
        """
        digests = sorted({caller.digest for caller in callers if caller.digest})
        try:
            async with redis_answers():
                grants = await self._keyring.find_all(digests)
        except UNAVAILABLE as error:
            raise _away() from error
        now: list[Caller | FleetError] = []
        for caller in callers:
            if caller.digest in grants:
                now.append(self._defaults.caller(caller.id, grants[caller.digest], caller.digest))
            elif caller.digest:
                now.append(Unauthorized("The API key was revoked, or has expired."))
            elif self.can_change(caller) and await self.requires_key():
                now.append(Unauthorized("Callers need an API key now."))
            else:
                now.append(caller)
        return now

    async def _find(self, key: str) -> Caller | None:
        digest = digest_of(key)
        grant = None
        # All of them are compared, so that the time tells nothing.
        for known, its_grant in self._known.items():
            if hmac.compare_digest(known, digest):
                grant = its_grant
        if grant is not None:
            return self._defaults.caller(id_of(digest), grant)
        kept = await self._kept(digest)
        if kept is None:
            return None
        return self._defaults.caller(id_of(digest), kept, digest)

    async def _kept(self, digest: str) -> Grant | None:
        try:
            async with redis_answers():
                return await self._keyring.find(digest)
        except UNAVAILABLE as error:
            raise _away() from error

    def _refusal(self, header: str | None) -> Unauthorized | Forbidden:
        if self._style == "x-api-key" and header != _BEARER:
            return Forbidden("Invalid API Key")
        if header is None:
            return Unauthorized(
                "Expected an API key, in Authorization: Bearer KEY or X-API-Key: KEY."
            )
        return Unauthorized(
            "The API key is not known, or no longer: it was revoked or has expired."
        )


def build_auth(settings: Settings, broker: Broker) -> Auth:
    """Return what settings say of keys. Raise SettingsError when one key is given two meanings."""
    known = _grants(settings.api_keys, is_admin=False)
    admins = _grants(settings.admin_keys, is_admin=True)
    if known.keys() & admins.keys():
        raise SettingsError("admin_keys: expected keys that are not in api_keys too")
    rate = None
    if settings.rate_limit:
        rate = rate_of(settings.rate_limit)
    quota = Quota(settings.tenant_concurrency, settings.tenant_rate_per_s, settings.tenant_burst)
    defaults = CallerDefaults(quota, rate, endpoint_rates(settings))
    keyring = Keyring(broker)
    is_auto = settings.require_key == "auto"
    return Auth(
        keyring,
        {**known, **admins},
        defaults,
        requires_key=settings.require_key == "yes" or (is_auto and bool(known or admins)),
        first_key=FirstKey(keyring) if is_auto else None,
        style=settings.key_style,
    )


def _away() -> BrokerUnavailable:
    return BrokerUnavailable("Redis is not reachable, which knows the keys.", retry_after_s=1)


def endpoint_rates(settings: Settings) -> dict[str, Rate]:
    """Return the rates that settings set for paths."""
    rates = {}
    for text in settings.endpoint_rate_limits:
        path, _, rate = text.partition("=")
        rates[path] = rate_of(rate)
    return rates


def _grants(entries: Sequence[SecretStr], *, is_admin: bool) -> dict[str, Grant]:
    """Return the grants of keys by digest.

    A key without a name is of the tenant `public`, as everybody is where there are no keys.
    """
    grants = {}
    for entry in entries:
        name, colon, key = entry.get_secret_value().rpartition(":")
        if not colon:
            name = "public"
        grants[digest_of(key)] = Grant(name, name, is_admin=is_admin)
    return grants


def _credentials(headers: Headers) -> tuple[str | None, str]:
    """Return the header that has a key, and the key; an Authorization of another scheme is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return _BEARER, token.strip()
    if _PLAIN.lower() in headers:
        return _PLAIN, headers[_PLAIN].strip()
    return None, ""
