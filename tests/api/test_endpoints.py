"""The table of endpoints: its rows work without HTTP, and a dialect with errors of its own is a
file of rows."""

from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, TypeAdapter
from redis.asyncio import Redis

from api.endpoints.dialect import Dialect
from api.endpoints.dialects import POSTS
from api.endpoints.endpoint import Endpoint, Post, TaskPlan
from api.endpoints.plans import text_plan
from api.endpoints.route_table import RouteTable
from api.http.app import PARTS, create_app
from api.http.error_format import ErrorFormat
from api.http.problem import Problem
from api.http.request_state import Usage
from api.schemas.fields import SampledRequest
from api.stream.request_events import Choice, Outcome
from api.submit.limits import Limits
from api.submit.request_record import RequestRecord, SubmittedWork
from shared.errors import InvalidRequest
from shared.messages import (
    ArtifactRef,
    ContinuationScore,
    Detokenized,
    Embedded,
    Generated,
    Label,
    Labelled,
    ModelInfo,
    Result,
    Scored,
    Solution,
    Tokenized,
)
from shared.queue.broker import Broker
from shared.queue.requests import Request
from shared.queue.submission import QueueLimits
from shared.settings.settings import Settings
from shared.tasks.echo_task import EchoedTask
from shared.tasks.pictures import Picture, Pictures
from shared.tasks.sound import Spoken, Transcript
from shared.tasks.vectors import pack
from tests.fixtures.api.echo_worker import ALL_TASKS, EchoWorker, model_info
from tests.fixtures.posts import POSTS as BODIES

LIMITS = Limits(
    max_new_tokens=64,
    cap_policy="clamp",
    max_prompts=8,
    queue_limits=QueueLimits(8),
    queue_timeout_s=1.0,
    request_timeout_s=2.0,
)
RESULTS: dict[str, Result] = {
    "generate": Generated(),
    "score": Scored((ContinuationScore(-1.0, 1, True),)),
    "solve": Solution(((1, 2), (3, 4)), 0.5, 3, True),
    "tokenize": Tokenized((1, 2)),
    "detokenize": Detokenized("text"),
    "embed": Embedded(pack([0.0, 1.0])),
    "classify": Labelled((Label("good", 0.9),)),
    "text-to-image": Pictures((Picture(7, 64, 64),)),
    "image-to-image": Pictures((Picture(7, 64, 64),)),
    "text-to-speech": Spoken(1.5, 16_000),
    "text-ranking": Labelled((Label("LABEL_0", 0.5),)),
    "automatic-speech-recognition": Transcript("text", 1.5),
    "echo_task": EchoedTask(2),
}


def post_of(path: str) -> Post:
    """Return the only row of the table with this path."""
    [post] = [post for post in POSTS if post.path == path]
    return post


@pytest.mark.parametrize(("path", "fields"), BODIES)
def test_a_row_plans_and_renders_without_a_request(path: str, fields: dict[str, Any]) -> None:
    """A row turns fields into tasks, and outcomes into its own answer, without an app, Redis or a
    loop."""
    post = post_of(path)
    body = TypeAdapter(post.body_type).validate_python(fields)
    endpoint = post.endpoint_of(body)
    assert isinstance(endpoint, Endpoint)

    plan = endpoint.plan(body, model_info(tasks=ALL_TASKS), LIMITS)
    assert len(plan.tasks) == 1

    record = RequestRecord(endpoint.name, "echo", 0, n=plan.n, notes=dict(plan.notes))
    work = SubmittedWork(Request("id", "tenant", ("job",)), record)
    outcome = Outcome(
        choices=(Choice("said", "stop", (5,)),),
        usage=Usage(1, 1),
        result=RESULTS[endpoint.task],
        artifacts=(ArtifactRef("file-1", "text/plain", 3),),
    )
    assert isinstance(endpoint.render(work, [outcome]), endpoint.answer)


def test_no_two_rows_have_a_name_or_a_path() -> None:
    paths = {post.path for post in POSTS}
    assert len(paths) == len(POSTS)

    # An endpoint may stand under several paths, as one and the same object.
    endpoints: dict[str, Any] = {}
    for post in POSTS:
        for endpoint in post.endpoints:
            if isinstance(endpoint, Endpoint):
                first = endpoints.setdefault(endpoint.name, endpoint)
                assert first is endpoint


class OddRequest(SampledRequest):
    say: str


class OddAnswer(BaseModel):
    said: list[str]


class OddError(BaseModel):
    wrong: str
    where: str | None


def _odd(problem: Problem) -> dict[str, Any]:
    return {"wrong": problem.message, "where": problem.field}


def _plan(body: OddRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    if body.say == "nothing":
        raise InvalidRequest("say: expected something.", field="say")
    return text_plan(body, [body.say], 4, model, limits)


def _render(work: SubmittedWork, outcomes: Sequence[Outcome]) -> OddAnswer:
    return OddAnswer(said=[choice.text for choice in outcomes[0].choices])


ODD = ErrorFormat(_odd, OddError, invalid_body=418)
SAY = Endpoint(
    name="odd",
    task="generate",
    body=OddRequest,
    answer=OddAnswer,
    plan=_plan,
    render=_render,
    errors=ODD,
)
SAY_POST = Post("/odd/say", "say", "Say it.", (SAY,), tag="odd")
DIALECT = Dialect((SAY_POST,), prefix="/odd/", errors=ODD)


async def test_a_dialect_with_errors_of_its_own_is_its_rows(
    redis: Redis, worker: EchoWorker
) -> None:
    """Every refusal has the dialect's own shape: before its handler, in it and behind it, and for
    paths that are not there."""
    settings = Settings(api_keys="k", max_body_bytes=200)  # type: ignore[arg-type]
    table = RouteTable((*PARTS, DIALECT))
    app = create_app(settings, Broker(redis), table=table)
    key = {"X-API-Key": "k"}
    unknown_model = {"say": "a b", "model": "nobody"}

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://front"
    ) as client:
        answer = await client.post("/odd/say", json={"say": "a b", "temperature": 0}, headers=key)
        assert answer.status_code == 200
        assert list(answer.json()) == ["said"]
        job = await client.get(f"/v1/jobs/{answer.headers['X-Job-Id']}", headers=key)
        assert job.json()["result"] == answer.json()

        refusals = (
            (401, await client.post("/odd/say", json={"say": "a b"})),
            (418, await client.post("/odd/say", json={"say": 3}, headers=key)),
            (400, await client.post("/odd/say", json={"say": "nothing"}, headers=key)),
            (404, await client.post("/odd/say", json=unknown_model, headers=key)),
            (413, await client.post("/odd/say", json={"say": "a" * 300}, headers=key)),
            (405, await client.put("/odd/say", headers=key)),
            (404, await client.get("/odd/else", headers=key)),
        )
        for status, refusal in refusals:
            assert refusal.status_code == status
            assert refusal.json().keys() == {"wrong", "where"}, refusal.text

        document = (await client.get("/openapi.json")).json()
    await app.state.front.close()

    responses = document["paths"]["/odd/say"]["post"]["responses"]
    schema = responses["4XX"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/OddError"}
