"""`/generate` and `/generate_stream`, which three dialects share.

A body is of the dialect whose key it has, and so are its answer and its errors.
"""

from typing import Annotated

from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Post
from api.endpoints.shapes import one_of
from api.routes import hrm, simple_foundation, tgi
from api.schemas.hrm import GenerateRequest
from api.schemas.simple_foundation import PromptRequest
from api.schemas.tgi import TgiRequest

_ENDPOINTS = {"prompts": hrm.GENERATE, "prompt": simple_foundation.PROMPT, "inputs": tgi.ONE}
Body = Annotated[
    GenerateRequest | PromptRequest | TgiRequest,
    one_of({key: endpoint.body for key, endpoint in _ENDPOINTS.items()}),
]
# The other two dialects have the same format of errors.
_BY_KEY = {"inputs": tgi.ONE}

DIALECT = Dialect(
    (
        Post(
            "/generate",
            "generate",
            "Completions of prompts.",
            tuple(_ENDPOINTS.values()),
            tag="generate",
            body=Body,
            by_key=_BY_KEY,
            job_task="generate",
        ),
        Post(
            "/generate_stream",
            "generate_stream",
            "The same as it comes, as server-sent events.",
            tuple(_ENDPOINTS.values()),
            tag="generate",
            body=Body,
            by_key=_BY_KEY,
            always_streams=True,
        ),
    )
)
