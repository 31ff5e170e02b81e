"""The answer of `GET /v1/usage`."""

import datetime
from typing import Literal

from pydantic import BaseModel

from shared.access import Budget, BudgetPeriod
from shared.queue import usage_ledger
from shared.queue.usage_ledger import UsageField


class UsageSums(BaseModel):
    """The sums over jobs that have ended, as `shared.queue.usage_ledger.Usage` has them."""

    requests: int
    jobs: int
    failed_jobs: int
    cancelled_jobs: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    act_segments: int
    compute_seconds: float
    artifact_bytes: int


class _UsageFields(BaseModel):
    """The fields of a row. Only those are there by which the rows are grouped."""

    day: datetime.date | None = None
    tenant: str | None = None
    key: str | None = None
    model: str | None = None


class UsageRow(UsageSums, _UsageFields):
    """The sums over the jobs with these values."""


class BudgetStanding(BaseModel):
    """The budget of a key in the present period. Open jobs have `reserved` tokens."""

    tokens: int
    period: BudgetPeriod
    used: int
    reserved: int
    left: int
    resets_at: datetime.datetime


class UsageReport(BaseModel):
    """The usage from the day `start` to the day `end`, in UTC."""

    object: Literal["usage"] = "usage"
    start: datetime.date
    end: datetime.date
    group_by: list[UsageField]
    rows: list[UsageRow]
    totals: UsageSums
    budget: BudgetStanding | None = None


def standing_body(budget: Budget, standing: usage_ledger.BudgetStanding) -> BudgetStanding:
    return BudgetStanding(
        tokens=budget.tokens,
        period=budget.period,
        used=standing.used,
        reserved=standing.reserved,
        left=standing.left,
        resets_at=standing.resets_at,
    )
