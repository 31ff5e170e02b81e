"""`POST /v1/jobs`: the body of any endpoint, with the name of its task, to be answered later."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Response
from fastapi.exceptions import RequestValidationError
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import TypeAliasType

from api.endpoints.context import RequestContextDep
from api.endpoints.dialect import Dialect
from api.endpoints.dialects import POSTS
from api.endpoints.handler import answer
from api.schemas.errors import Accepted
from api.schemas.jobs import IN_TIME
from shared.errors import InvalidRequest

router = APIRouter(tags=["jobs"])

PATH = "/v1/jobs"
TASKS = {post.job_task: post for post in POSTS if post.job_task}


class Submission(BaseModel):
    """A task, with the fields of its endpoint's body beside its name."""

    model_config = ConfigDict(extra="allow")

    task: str = Field(strict=True)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the schema: one of the bodies of the table, told apart by `task`."""
        parts = {}
        for task in TASKS:
            part = handler(TypeAdapter(_submitted(task)).core_schema)
            parts[task] = part["$ref"]
        return {
            "title": cls.__name__,
            "description": cls.__doc__,
            "oneOf": [{"$ref": part} for part in parts.values()],
            "discriminator": {"propertyName": "task", "mapping": parts},
        }


@dataclass(frozen=True)
class _Beside:
    """The further fields of an endpoint's body in the OpenAPI document: its `task`."""

    task: str

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        body = handler(schema)
        examples = []
        for part in body.get("anyOf", [body]):
            shape = handler.resolve_ref_schema(part)
            for example in shape.get("examples", []):
                examples.append({"task": self.task} | example)
        task = {
            "type": "object",
            "properties": {"task": {"type": "string", "const": self.task}},
            "required": ["task"],
        }
        return {"allOf": [task, body], "examples": examples}


def _submitted(task: str) -> Any:
    """Return the type of a body of `POST /v1/jobs` with this task.

    By the name that the type gets here it has a schema of its own in the OpenAPI document.
    """
    name = ""
    for word in task.split("_"):
        name += word.capitalize()
    return TypeAliasType(f"{name}Job", Annotated[TASKS[task].body_type, _Beside(task)])


@router.post(PATH, status_code=202, response_model=Accepted, responses=IN_TIME)
async def submit(body: Submission, context: RequestContextDep) -> Response:
    """Answer 202 with the job's address at once.

    With `Prefer: wait=N`, answer as the job's endpoint does, if that is ready in time.
    """
    post = TASKS.get(body.task)
    if post is None:
        raise InvalidRequest(f"task: expected one of {', '.join(TASKS)}.", field="task")
    try:
        fields = TypeAdapter(post.body_type).validate_python(body.model_extra)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    wait_s = context.options.wait_s or 0.0
    return await answer(
        replace(context, options=replace(context.options, wait_s=wait_s)), post, fields
    )


DIALECT = Dialect(router=router, any_body=frozenset({PATH}))
