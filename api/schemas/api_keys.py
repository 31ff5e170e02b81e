"""Bodies of `/v1/keys`: keys of callers, and what each may do."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt

from api.schemas.fields import NonEmpty
from api.schemas.usage_report import BudgetStanding
from shared.access import NAME, Budget, BudgetPeriod, Grant, check_name, rate_of
from shared.messages import Priority

_MOST_TOKENS = 10**15 - 1
_MOST_JOBS = 10**9 - 1
_MOST_SECONDS = 10**9
_MOST_MODELS = 1000


def _check_rate(text: str) -> str:
    rate_of(text)
    return text


_Name = Annotated[
    str,
    AfterValidator(check_name),
    Field(json_schema_extra={"pattern": f"^{NAME.pattern}$"}),
]
_Rate = Annotated[
    str,
    AfterValidator(_check_rate),
    Field(json_schema_extra={"pattern": "^0*[1-9][0-9]{0,5}/0*[1-9][0-9]{0,5}$"}),
]


class BudgetRequest(BaseModel):
    """The most tokens, of prompts and answers, that a key may use in each period."""

    tokens: StrictInt = Field(ge=1, le=_MOST_TOKENS)
    period: BudgetPeriod = Field(default="month", description="A day or a month, in UTC.")


class ApiKeyRequest(BaseModel):
    """A key to be made. Without limits those of the fleet hold, and it may use every model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "nightly",
                    "best_priority": "bulk",
                    "rate": "10/60",
                    "budget": {"tokens": 1_000_000, "period": "month"},
                    "expires_in_s": 2_592_000,
                }
            ]
        }
    )

    name: _Name = Field(description="Whose it is, for people; keys may share a name.")
    tenant: _Name | None = Field(
        default=None, description="Whose jobs it sees: keys of one tenant share them."
    )
    best_priority: Priority = Field(default="interactive", description="The best `X-Priority`.")
    rate: _Rate | None = Field(
        default=None, description="Requests for work, as times/seconds: `10/60`."
    )
    concurrency: StrictInt | None = Field(
        default=None, ge=1, le=_MOST_JOBS, description="Open jobs of its tenant before 429."
    )
    budget: BudgetRequest | None = None
    models: list[NonEmpty] = Field(
        default=[], max_length=_MOST_MODELS, description="The only models it may use; empty: all."
    )
    is_admin: StrictBool = Field(default=False, description="Whether it opens admin routes.")
    expires_in_s: StrictInt | None = Field(
        default=None, ge=1, le=_MOST_SECONDS, description="For how long it holds."
    )

    def as_grant(self) -> Grant:
        budget = None
        if self.budget is not None:
            budget = Budget(self.budget.tokens, self.budget.period)
        return Grant(
            name=self.name,
            tenant=self.tenant or self.name,
            best_priority=self.best_priority,
            rate=rate_of(self.rate) if self.rate else None,
            concurrency=self.concurrency or 0,
            models=tuple(self.models),
            is_admin=self.is_admin,
            budget=budget,
        )


class ApiKey(BaseModel):
    """A key that holds. What is null is not limited, or only by the settings of the fleet."""

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    tenant: str
    best_priority: Priority
    rate: str | None
    concurrency: int | None
    budget: BudgetStanding | None
    models: list[str]
    is_admin: bool
    created_at: datetime
    expires_at: datetime | None


class ApiKeyWithSecret(ApiKey):
    """A key that is new. Only now is the `key` itself told."""

    key: str


class ApiKeyList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ApiKey]


class DeletedApiKey(BaseModel):
    id: str
    object: Literal["api_key.deleted"] = "api_key.deleted"
    deleted: bool = True


def key_body(key_id: str, grant: Grant, budget: BudgetStanding | None) -> ApiKey:
    expires_at = None
    if grant.expires_at is not None:
        expires_at = datetime.fromtimestamp(grant.expires_at, UTC)
    return ApiKey(
        id=key_id,
        name=grant.name,
        tenant=grant.tenant,
        best_priority=grant.best_priority,
        rate=str(grant.rate) if grant.rate else None,
        concurrency=grant.concurrency or None,
        budget=budget,
        models=list(grant.models),
        is_admin=grant.is_admin,
        created_at=datetime.fromtimestamp(grant.created_at, UTC),
        expires_at=expires_at,
    )
