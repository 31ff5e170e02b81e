"""`GET /v1/usage`: what keys have used, by day, model, key and tenant, as JSON or CSV."""

from datetime import date, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Response
from pydantic import WithJsonSchema

from api.access.caller import Caller, CallerDep
from api.deps import Front, FrontDep
from api.endpoints.dialect import Dialect
from api.redis_timeout import redis_answers
from api.schemas.usage_report import (
    BudgetStanding,
    UsageReport,
    UsageRow,
    UsageSums,
    standing_body,
)
from shared.errors import Forbidden, InvalidRequest
from shared.queue.usage_ledger import (
    USAGE_FIELDS,
    UsageField,
    UsageGroup,
    as_csv,
    grouped,
    total,
    usage_fields,
)

PATH = "/v1/usage"

router = APIRouter(tags=["fleet"])

_CSV = "text/csv"
_DAYS = 30
"""The number of days that a report is about, unless it is told."""
_MOST_DAYS = 400
"""The most that one report may be about: each is some reads of Redis."""
_Day = Annotated[
    str | None,
    Query(description="A day in UTC, as 2026-11-30."),
    WithJsonSchema({"type": "string", "format": "date"}),
]
_GroupBy = Annotated[
    str, Query(description=f"Fields to group by, comma-separated: {', '.join(USAGE_FIELDS)}.")
]
_Tenant = Annotated[
    str | None,
    Query(description="All keys of this tenant: the caller's own, or any for an admin."),
    WithJsonSchema({"type": "string"}),
]
_Format = Annotated[
    str | None,
    Query(description="By default JSON, or CSV where `Accept` is text/csv."),
    WithJsonSchema({"type": "string", "enum": ["json", "csv"]}),
]


@router.get(
    PATH,
    response_model=UsageReport,
    response_model_exclude_none=True,
    responses={200: {"content": {_CSV: {"schema": {"type": "string"}}}}},
)
@redis_answers()
async def usage(
    front: FrontDep,
    caller: CallerDep,
    *,
    start: _Day = None,
    end: _Day = None,
    group_by: _GroupBy = "day,model",
    tenant: _Tenant = None,
    format: _Format = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> UsageReport | Response:
    """Return the usage of the caller's key; to admins that of all keys.

    Without days it is that of the last 30.
    """
    try:
        fields = usage_fields(group_by)
    except ValueError as error:
        raise InvalidRequest(f"group_by: {error}.", field="group_by") from None
    form = _form(format, accept)
    first, last = await _days(front, start, end)
    key = None
    if tenant is None and not caller.is_admin:
        tenant = caller.tenant
        key = caller.id
    elif tenant not in (None, caller.tenant) and not caller.is_admin:
        raise Forbidden("tenant: this key may not see the usage of another tenant.", field="tenant")

    rows = await front.usage_ledger.read(first, last, tenant=tenant, key=key)
    groups = grouped(rows, fields)
    if form == "csv":
        text = as_csv(groups, fields)
        return Response(text, media_type=_CSV, headers={"Vary": "Accept"})
    return UsageReport(
        start=first,
        end=last,
        group_by=fields,
        rows=[_row(fields, group) for group in groups],
        totals=UsageSums.model_validate(total(rows).as_json()),
        budget=await _standing(front, caller),
    )


def _row(fields: list[UsageField], group: UsageGroup) -> UsageRow:
    values = dict(zip(fields, group.values, strict=True))
    return UsageRow.model_validate({**values, **group.usage.as_json()})


async def _standing(front: Front, caller: Caller) -> BudgetStanding | None:
    budget = caller.budget
    if budget is None:
        return None
    return standing_body(budget, await front.usage_ledger.standing(caller.id, budget))


def _form(format: str | None, accept: str) -> Literal["json", "csv"]:
    """Return the form of the answer. Raise InvalidRequest for an unknown one."""
    if format is None:
        return "csv" if _CSV in accept.lower() else "json"
    if format == "csv":
        return "csv"
    if format == "json":
        return "json"
    raise InvalidRequest(f"format: expected json or csv, got {format!r}.", field="format")


async def _days(front: Front, start: str | None, end: str | None) -> tuple[date, date]:
    """Return the first and the last day. Raise InvalidRequest where they make no sense."""
    last = _day("end", end) or await front.usage_ledger.today()
    first = _day("start", start) or max(date.min, last - timedelta(days=_DAYS - 1))
    if first > last:
        raise InvalidRequest(
            f"start: expected a day up to the end, {last}, got {first}.", field="start"
        )
    if (last - first).days >= _MOST_DAYS:
        raise InvalidRequest(
            f"start: expected at most {_MOST_DAYS} days, got {(last - first).days + 1}.",
            field="start",
        )
    return first, last


def _day(field: str, text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"{field}: expected a day such as 2026-11-30, got {text!r}.", field=field
        ) from None


DIALECT = Dialect(router=router, prefix=PATH)
