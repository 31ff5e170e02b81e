"""From the key in a request's headers to its caller.

Keys of the environment are known by this process; any other is looked for in Redis, once for each request, so that one
that is revoked or has expired is refused from that moment on.
"""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import SecretStr
from starlette.datastructures import Headers

from api.caller import Caller
from api.patience import redis_answers
from shared.access import Grant, Keyring, Rate, digest_of, id_of, rate_of
from shared.broker import UNAVAILABLE, Broker
from shared.errors import BrokerUnavailable, Forbidden, Unauthorized
from shared.setting_layers import SettingsError
from shared.settings import Settings
from shared.submission import Quota

_BEARER, _PLAIN = "Bearer", "X-API-Key"
Style = Literal["bearer", "x-api-key"]


@dataclass(frozen=True)
class Terms:
    """What holds for every caller, unless a key's grant says otherwise."""

    quota: Quota
    rate: Rate | None = None
    endpoint_rates: Mapping[str, Rate] | None = None

    def caller(self, id: str, grant: Grant) -> Caller:
        rate = grant.rate or self.rate
        return Caller(
            tenant=grant.tenant,
            quota=Quota(grant.concurrency or self.quota.concurrency, self.quota.rate_per_s, self.quota.burst),
            best_priority=grant.best_priority,
            id=id,
            models=frozenset(grant.models),
            rates={**(self.endpoint_rates or {}), **({"": rate} if rate else {})},
            is_admin=grant.is_admin,
        )


class Auth:
    """`known`: the grants of the environment's keys, by digest."""

    def __init__(
        self, keyring: Keyring, known: Mapping[str, Grant], terms: Terms, *, requires_key: bool, style: Style = "bearer"
    ) -> None:
        self.requires_key = requires_key
        self._keyring = keyring
        self._known = known
        self._terms = terms
        self._style = style
        self._anonymous = terms.caller("", Grant("public", "public"))

    async def caller(self, headers: Headers, *, needs_key: bool = False, needs_admin: bool = False) -> Caller:
        """Who sent these headers. Raises Unauthorized, Forbidden, and BrokerUnavailable when Redis is needed and away.

        Where keys are not needed, one that is not known counts for nothing: clients that always send some may call.
        """
        needs_key = needs_key or needs_admin or self.requires_key
        header, key = _credentials(headers)
        found = await self._find(key) if key else None
        if found is None:
            if needs_key:
                raise self._refusal(header)
            return self._anonymous
        if needs_admin and not found.is_admin:
            raise Forbidden("This needs an admin key.")
        return found

    async def _find(self, key: str) -> Caller | None:
        digest, grant = digest_of(key), None
        for known, its_grant in self._known.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(known, digest):
                grant = its_grant
        if grant is None:
            grant = await self._kept(digest)
        return None if grant is None else self._terms.caller(id_of(digest), grant)

    async def _kept(self, digest: str) -> Grant | None:
        try:
            async with redis_answers():
                return await self._keyring.find(digest)
        except UNAVAILABLE as error:
            raise BrokerUnavailable("Redis is not reachable, which knows the keys.", retry_after_s=1) from error

    def _refusal(self, header: str | None) -> Unauthorized | Forbidden:
        if self._style == "x-api-key" and header != _BEARER:
            return Forbidden("Invalid API Key")
        if header is None:
            return Unauthorized("Expected an API key, in Authorization: Bearer KEY or X-API-Key: KEY.")
        return Unauthorized("The API key is not known, or no longer: it was revoked or has expired.")


def build_auth(settings: Settings, broker: Broker) -> Auth:
    """Raises SettingsError when one key is given two meanings."""
    known = _grants(settings.api_keys, is_admin=False)
    admins = _grants(settings.admin_keys, is_admin=True)
    if known.keys() & admins.keys():
        raise SettingsError("admin_keys: expected keys that are not in api_keys too")
    terms = Terms(
        Quota(settings.tenant_concurrency, settings.tenant_rate_per_s, settings.tenant_burst),
        rate_of(settings.rate_limit) if settings.rate_limit else None,
        endpoint_rates(settings),
    )
    needs = settings.require_key == "yes" or (settings.require_key == "auto" and bool(known or admins))
    return Auth(Keyring(broker), {**known, **admins}, terms, requires_key=needs, style=settings.key_style)


def endpoint_rates(settings: Settings) -> dict[str, Rate]:
    """By path."""
    pairs = (text.partition("=") for text in settings.endpoint_rate_limits)
    return {path: rate_of(rate) for path, _, rate in pairs}


def _grants(entries: Sequence[SecretStr], *, is_admin: bool) -> dict[str, Grant]:
    """By digest. Whoever has a key without a name is of the tenant that everybody is of where there are no keys."""
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
