"""Find the caller of a request by the key in its headers.

This process knows the keys of the environment. Any other key is looked up in Redis, once for each
request, so a key that is revoked or expires is refused from that moment on. Answers that are under
way at that moment are ended by `api/access/revocations.py`.
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
        """Return the caller whose key has this grant."""
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
            budget=grant.budget,
        )


class FirstKey:
    """Knows whether a key has ever been made in Redis.

    Once that is true it stays true, and Redis is not asked again. Until then Redis is asked at most
    every `max_age_s`, by one reader for all requests. A read that fails is remembered as long, so a
    hanging Redis costs its time limit once.
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
        # The read is for all that wait: one that leaves does not cancel it.
        is_made = await asyncio.shield(self._reading)
        if is_made is None:
            raise BrokerUnavailable(
                "Redis, which knows whether keys are needed, is not reachable.", retry_after_s=1
            )
        self.is_known = is_made
        return is_made

    async def _read(self) -> bool | None:
        loop = asyncio.get_running_loop()
        # An answer is as old as its question. A failure counts from its end: it may take longer
        # than `max_age_s`, and would be forgotten at once.
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

    `known` are the grants of the environment's keys, by digest. With `requires_key` callers always
    need a key. Without it they need one as soon as a `first_key` has been made, if that is given.
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

        Raise Unauthorized or Forbidden, and BrokerUnavailable when Redis is needed and away.
        """
        header, key = _credentials(headers)
        caller = None
        if key:
            caller = await self._find(key)
        if caller is None:
            # Where no key is needed, an unknown one is no error: some clients always send one.
            if needs_key or needs_admin or await self.requires_key():
                raise self._refusal(header)
            return self._anonymous
        if needs_admin and not caller.is_admin:
            raise Forbidden("This needs an admin key.")
        return caller

    async def requires_key(self) -> bool:
        """Return whether a caller without a key is refused.

        Raise BrokerUnavailable when only Redis knows that and it is away.
        """
        if self._first_key is None:
            return self._requires_key
        return self._requires_key or await self._first_key.is_made()

    def can_change(self, caller: Caller) -> bool:
        """Return whether the caller's rights may change while this process runs."""
        if caller.digest:
            return True
        return not caller.id and self.may_be_open

    async def refresh(self, caller: Caller) -> Caller:
        """Return the caller with its present rights. Raise Unauthorized and BrokerUnavailable."""
        [present] = await self.refresh_all([caller])
        if isinstance(present, FleetError):
            raise present
        return present

    async def refresh_all(self, callers: Sequence[Caller]) -> list[Caller | FleetError]:
        """Return each caller with its present rights, or the error of one that has none any more.

        All keys are read from Redis at once. Raise BrokerUnavailable.
        """
        digests = sorted({caller.digest for caller in callers if caller.digest})
        try:
            async with redis_answers():
                grants = await self._keyring.find_all(digests)
        except UNAVAILABLE as error:
            raise _away() from error
        present: list[Caller | FleetError] = []
        for caller in callers:
            if caller.digest in grants:
                grant = grants[caller.digest]
                present.append(self._defaults.caller(caller.id, grant, caller.digest))
            elif caller.digest:
                present.append(Unauthorized("The API key was revoked, or has expired."))
            elif self.can_change(caller) and await self.requires_key():
                present.append(Unauthorized("Callers need an API key now."))
            else:
                present.append(caller)
        return present

    async def _find(self, key: str) -> Caller | None:
        """Return the caller with this key, None if nobody has it. Raise BrokerUnavailable."""
        digest = digest_of(key)
        grant = None
        # All digests are compared, so that the time this takes tells nothing of the key.
        for known_digest, known_grant in self._known.items():
            if hmac.compare_digest(known_digest, digest):
                grant = known_grant
        if grant is not None:
            return self._defaults.caller(id_of(digest), grant)
        grant = await self._stored_grant(digest)
        if grant is None:
            return None
        return self._defaults.caller(id_of(digest), grant, digest)

    async def _stored_grant(self, digest: str) -> Grant | None:
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
        return Unauthorized("The API key is not known: it is wrong, was revoked or has expired.")


def build_auth(settings: Settings, broker: Broker) -> Auth:
    """Return the Auth that settings ask for. Raise SettingsError for a key with two meanings."""
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

    requires_key = settings.require_key == "yes"
    first_key = None
    if settings.require_key == "auto":
        requires_key = bool(known or admins)
        first_key = FirstKey(keyring)
    return Auth(
        keyring,
        {**known, **admins},
        defaults,
        requires_key=requires_key,
        first_key=first_key,
        style=settings.key_style,
    )


def _away() -> BrokerUnavailable:
    return BrokerUnavailable("Redis, which knows the keys, is not reachable.", retry_after_s=1)


def endpoint_rates(settings: Settings) -> dict[str, Rate]:
    """Return the rates that settings give for endpoints, by their paths."""
    rates = {}
    for text in settings.endpoint_rate_limits:
        path, _, rate = text.partition("=")
        rates[path] = rate_of(rate)
    return rates


def _grants(entries: Sequence[SecretStr], *, is_admin: bool) -> dict[str, Grant]:
    """Return the grants of keys, by their digests.

    A key without a name belongs to the tenant `public`, as does everybody where there are no keys.
    """
    grants = {}
    for entry in entries:
        name, colon, key = entry.get_secret_value().rpartition(":")
        if not colon:
            name = "public"
        grants[digest_of(key)] = Grant(name, name, is_admin=is_admin)
    return grants


def _credentials(headers: Headers) -> tuple[str | None, str]:
    """Return the way in which a key came, and the key; None and "" if none came.

    An Authorization of another scheme than Bearer is ignored.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return _BEARER, token.strip()
    if _PLAIN.lower() in headers:
        return _PLAIN, headers[_PLAIN].strip()
    return None, ""
