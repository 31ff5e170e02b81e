"""From the key in a request's headers to its caller.

Keys of the environment are known by this process; any other is looked for in Redis, once for each
request, so that one that is revoked or has expired is refused from that moment on. What is under
way then is ended by `api/revocations.py`.
"""

import asyncio
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import SecretStr
from starlette.datastructures import Headers

from api.caller import Caller
from api.redis_timeout import redis_answers
from shared.access import Grant, Keyring, Rate, digest_of, id_of, rate_of
from shared.broker import UNAVAILABLE, Broker
from shared.errors import BrokerUnavailable, FleetError, Forbidden, Unauthorized
from shared.setting_layers import SettingsError
from shared.settings import Settings
from shared.submission import Quota

_BEARER, _PLAIN = "Bearer", "X-API-Key"
Style = Literal["bearer", "x-api-key"]


@dataclass(frozen=True)
class CallerDefaults:
    """What holds for every caller, unless a key's grant says otherwise."""

    quota: Quota
    rate: Rate | None = None
    endpoint_rates: Mapping[str, Rate] | None = None

    def caller(self, id: str, grant: Grant, digest: str = "") -> Caller:
        rate = grant.rate or self.rate
        return Caller(
            tenant=grant.tenant,
            quota=Quota(
                grant.concurrency or self.quota.concurrency, self.quota.rate_per_s, self.quota.burst
            ),
            best_priority=grant.best_priority,
            id=id,
            models=frozenset(grant.models),
            rates={**(self.endpoint_rates or {}), **({"": rate} if rate else {})},
            is_admin=grant.is_admin,
            digest=digest,
        )


class FirstKey:
    """Whether a key has ever been made in Redis. That can only become true, and then it is not
    asked again.

    Until then Redis is asked at most every `max_age_s`, by one reader for all requests. A read that
    fails is remembered as long, so a hanging Redis costs its time once.
    """

    def __init__(self, keyring: Keyring, *, max_age_s: float = 0.5) -> None:
        self.is_known = False
        self._keyring = keyring
        self._max_age_s = max_age_s
        self._reading: asyncio.Task[bool | None] | None = None
        self._expires_s = 0.0

    async def is_made(self) -> bool:
        """As it was at most `max_age_s` ago. Raises BrokerUnavailable: who cannot tell lets nobody
        in."""
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
    """`known`: the grants of the environment's keys, by digest. Where keys are not required anyway,
    they are as soon as `first_key` has been made, if it is given."""

    def __init__(
        self,
        keyring: Keyring,
        known: Mapping[str, Grant],
        terms: CallerDefaults,
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
        self._terms = terms
        self._style = style
        self._anonymous = terms.caller("", Grant("public", "public"))

    async def caller(
        self, headers: Headers, *, needs_key: bool = False, needs_admin: bool = False
    ) -> Caller:
        """Who sent these headers. Raises Unauthorized, Forbidden, and BrokerUnavailable when Redis
        is needed and away.

        Where keys are not needed, one that is not known counts for nothing: clients that always
        send some may call.
        """
        header, key = _credentials(headers)
        found = await self._find(key) if key else None
        if found is None:
            if needs_key or needs_admin or await self.requires_key():
                raise self._refusal(header)
            return self._anonymous
        if needs_admin and not found.is_admin:
            raise Forbidden("This needs an admin key.")
        return found

    async def requires_key(self) -> bool:
        """Whether who has no key is refused. Raises BrokerUnavailable when that is not known."""
        if self._first_key is None:
            return self._requires_key
        return self._requires_key or await self._first_key.is_made()

    def can_change(self, caller: Caller) -> bool:
        """Whether the caller may be refused later, while this process runs."""
        if caller.digest:
            return True
        return not caller.id and self.may_be_open

    async def again(self, caller: Caller) -> Caller:
        """The caller as it may call now. Raises as `caller` does."""
        [now] = await self.again_all([caller])
        if isinstance(now, FleetError):
            raise now
        return now

    async def again_all(self, callers: Sequence[Caller]) -> list[Caller | FleetError]:
        """Each caller as it may call now, or the error of one that may not: one read of all keys in
        Redis together.

        Raises BrokerUnavailable.
        """
        digests = sorted({caller.digest for caller in callers if caller.digest})
        try:
            async with redis_answers():
                grants = await self._keyring.find_all(digests)
        except UNAVAILABLE as error:
            raise _away() from error
        told: list[Caller | FleetError] = []
        for caller in callers:
            if caller.digest in grants:
                told.append(self._terms.caller(caller.id, grants[caller.digest], caller.digest))
            elif caller.digest:
                told.append(Unauthorized("The API key was revoked, or has expired."))
            elif self.can_change(caller) and await self.requires_key():
                told.append(Unauthorized("Callers need an API key now."))
            else:
                told.append(caller)
        return told

    async def _find(self, key: str) -> Caller | None:
        digest, grant = digest_of(key), None
        for known, its_grant in self._known.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(known, digest):
                grant = its_grant
        if grant is not None:
            return self._terms.caller(id_of(digest), grant)
        kept = await self._kept(digest)
        return None if kept is None else self._terms.caller(id_of(digest), kept, digest)

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
    """Raises SettingsError when one key is given two meanings."""
    known = _grants(settings.api_keys, is_admin=False)
    admins = _grants(settings.admin_keys, is_admin=True)
    if known.keys() & admins.keys():
        raise SettingsError("admin_keys: expected keys that are not in api_keys too")
    terms = CallerDefaults(
        Quota(settings.tenant_concurrency, settings.tenant_rate_per_s, settings.tenant_burst),
        rate_of(settings.rate_limit) if settings.rate_limit else None,
        endpoint_rates(settings),
    )
    keyring = Keyring(broker)
    is_auto = settings.require_key == "auto"
    return Auth(
        keyring,
        {**known, **admins},
        terms,
        requires_key=settings.require_key == "yes" or (is_auto and bool(known or admins)),
        first_key=FirstKey(keyring) if is_auto else None,
        style=settings.key_style,
    )


def _away() -> BrokerUnavailable:
    return BrokerUnavailable("Redis is not reachable, which knows the keys.", retry_after_s=1)


def endpoint_rates(settings: Settings) -> dict[str, Rate]:
    """By path."""
    pairs = (text.partition("=") for text in settings.endpoint_rate_limits)
    return {path: rate_of(rate) for path, _, rate in pairs}


def _grants(entries: Sequence[SecretStr], *, is_admin: bool) -> dict[str, Grant]:
    """By digest. Whoever has a key without a name is of the tenant that everybody is of where there
    are no keys."""
    grants = {}
    for entry in entries:
        name, colon, key = entry.get_secret_value().rpartition(":")
        name = name if colon else "public"
        grants[digest_of(key)] = Grant(name, name, is_admin=is_admin)
    return grants


def _credentials(headers: Headers) -> tuple[str | None, str]:
    """The header that has a key, and the key; an Authorization of another scheme is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return _BEARER, token.strip()
    if _PLAIN.lower() in headers:
        return _PLAIN, headers[_PLAIN].strip()
    return None, ""
