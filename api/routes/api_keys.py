"""`/v1/keys`: operators make, list and revoke keys of callers, as `aios keys` does.

Keys of the environment are not among them: they hold as long as a front has them.
"""

import logging

from fastapi import APIRouter

from api.access.caller import CallerDep
from api.deps import Front, FrontDep, RequestStateDep
from api.endpoints.dialect import Access, Dialect
from api.redis_timeout import redis_answers
from api.schemas.api_keys import (
    ApiKey,
    ApiKeyList,
    ApiKeyRequest,
    ApiKeyWithSecret,
    DeletedApiKey,
    key_body,
)
from api.schemas.errors import PlainErrorBody, errors_of
from api.schemas.usage_report import standing_body
from shared.access import Grant, Keyring, id_of
from shared.errors import KeyNotFound
from shared.telemetry.logging_setup import fields

PATH = "/v1/keys"

security_log = logging.getLogger("aios.security")

router = APIRouter(prefix=PATH, tags=["fleet"], responses=errors_of(PlainErrorBody))


@router.post("")
@redis_answers()
async def create_key(
    body: ApiKeyRequest, front: FrontDep, caller: CallerDep, request_state: RequestStateDep
) -> ApiKeyWithSecret:
    """Make a key, which holds on all fronts at once. It is told only now."""
    request_state.tells_secret = True
    key, key_id, grant = await Keyring(front.broker).create(
        body.as_grant(), lives_s=body.expires_in_s
    )
    security_log.info(
        "key made",
        extra=fields(
            request_id=request_state.request_id, made=key_id, tenant=grant.tenant, by=caller.id
        ),
    )
    made = await _body(front, key_id, grant)
    return ApiKeyWithSecret(**made.model_dump(), key=key)


@router.get("")
@redis_answers()
async def list_keys(front: FrontDep) -> ApiKeyList:
    """List the keys that hold, the oldest first."""
    found = []
    for digest, grant in (await Keyring(front.broker).all_grants()).items():
        found.append(await _body(front, id_of(digest), grant))
    return ApiKeyList(data=found)


@router.delete("/{id}")
@redis_answers()
async def revoke_key(
    id: str, front: FrontDep, caller: CallerDep, request_state: RequestStateDep
) -> DeletedApiKey:
    """Revoke a key: from now on it opens nothing, on all fronts."""
    keyring = Keyring(front.broker)
    digest = await keyring.find_id(id)
    if digest is None:
        # The id is not repeated: it may be a key that somebody has put here by mistake.
        raise KeyNotFound("id: expected that of a key that holds, as the list has it.", field="id")
    await keyring.revoke(digest)
    security_log.info(
        "key revoked",
        extra=fields(request_id=request_state.request_id, revoked=id_of(digest), by=caller.id),
    )
    return DeletedApiKey(id=id_of(digest))


async def _body(front: Front, key_id: str, grant: Grant) -> ApiKey:
    """Return a key with the standing of its budget."""
    budget = None
    if grant.budget is not None:
        standing = await front.usage_ledger.standing(key_id, grant.budget)
        budget = standing_body(grant.budget, standing)
    return key_body(key_id, grant, budget)


DIALECT = Dialect(router=router, access=Access.ADMIN, prefix=PATH)
