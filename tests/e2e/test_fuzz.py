"""Every body is answered in the dialect's shape and never with a 5xx.

The worker behind the front lives on.
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings

from shared.queue.broker import connect
from tests.fixtures.e2e.inside import fleet_inside
from worker.engine.runner import RunnerOptions
from worker.runners.echo import Echo

OPENAI_KEYS = {"message", "type", "param", "code"}
PLAIN_KEYS = {"code", "message", "field"}
API_KEYS = {"code", "message", "details"}
ANSWER_KEYS = {
    "/generate": {"completions", "generated_text"},
    "/loglikelihood": {"ll"},
    "/v1/completions": {"choices"},
    "/solve/math": {"solution"},
    "/api/inference": {"result"},
}

TEXTS = st.text(max_size=6) | st.sampled_from(["a", "eos", "\ud800", "", "x" * 40])
NUMBERS = st.integers(-(2**70), 2**70) | st.integers(-3, 70) | st.floats() | st.booleans()
ANYTHING = st.recursive(
    st.none() | TEXTS | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=5,
)
IDS = st.lists(st.integers(-1, 0x110001), max_size=40)
PROMPTS = st.lists(TEXTS | IDS, max_size=3)
SAMPLING: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": st.integers(1, 40),
    "max_new_tokens": st.integers(1, 40),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(-1, 50),
    "min_p": st.floats(0, 1),
    "min_tokens": st.integers(0, 5),
    "seed": st.integers(-(2**63), 2**64),
    "stop": TEXTS | st.lists(TEXTS, max_size=17),
    "stop_token_ids": IDS,
    "ignore_eos": st.booleans(),
    "logit_bias": st.dictionaries(
        st.integers(-1, 0x110001).map(str), st.floats(-101, 101), max_size=3
    ),
    "repetition_penalty": st.floats(0, 3),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "n": st.integers(1, 3),
    "best_of": st.integers(1, 3),
    "logprobs": st.integers(0, 5),
    "model": st.sampled_from(["parrot", "local", "nobody", ""]),
    "condition": TEXTS,
    "cycles": st.sampled_from(["2x1", "1x", "2x1\n"]),
    "max_steps": st.integers(0, 3),
    "effort": st.sampled_from(["low", "none"]),
}
FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "/generate": SAMPLING
    | {
        "prompts": PROMPTS,
        "prompt": TEXTS,
        "inputs": TEXTS,
        "do_sample": st.booleans(),
        "stream": st.booleans(),
        "parameters": st.fixed_dictionaries({}, optional=SAMPLING | {"details": st.booleans()}),
    },
    "/solve/math": SAMPLING
    | {"problem": TEXTS, "template": st.just("{problem}") | TEXTS, "stream": st.booleans()},
    "/api/inference": {
        "inputs": TEXTS,
        "task": st.sampled_from(
            ["text-generation", "feature-extraction", "text-classification", "echo", "other"]
        ),
        "pipeline_tag": st.sampled_from(["conversational", "other"]),
        "model_id": st.sampled_from(["parrot", "nobody"]),
        "options": st.fixed_dictionaries({}, optional=SAMPLING | {"normalize": st.booleans()}),
        "stream": st.booleans(),
    },
    "/loglikelihood": {
        "prompts": PROMPTS,
        "continuations": PROMPTS,
        "scoring": st.sampled_from(["strict", "other"]),
    },
    "/v1/completions": SAMPLING
    | {
        "prompt": TEXTS | IDS | PROMPTS,
        "stream": st.booleans(),
        "stream_options": st.just({"include_usage": True}),
        "truncate_prompt_tokens": st.integers(-2, 50),
        "echo": st.booleans(),
        "suffix": TEXTS,
    },
}
RIGHT = {
    "/generate": {"prompts": ["a"]},
    "/loglikelihood": {"prompts": ["a"], "continuations": ["b"]},
    "/v1/completions": {"prompt": "a"},
    "/solve/math": {"problem": "a"},
    "/api/inference": {"inputs": "a"},
}


def bodies(path: str) -> st.SearchStrategy[bytes]:
    """Draw bodies that mostly are objects with the right keys and often have values of their kind.

    Some bodies are other JSON, and some are no JSON at all.
    """
    needed = {}
    optional = {}
    loose = {}
    for name, values in FIELDS[path].items():
        loose[name] = values | ANYTHING
        if name in RIGHT[path]:
            needed[name] = values
        else:
            optional[name] = values | ANYTHING

    right = st.fixed_dictionaries(needed, optional=optional)
    wrong = st.fixed_dictionaries({}, optional=loose)
    documents = right | wrong | ANYTHING
    return documents.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=12)


@pytest.fixture(scope="module")
def fleet(redis_server: Any) -> Iterator[tuple[asyncio.Runner, httpx.AsyncClient]]:
    """Run a fleet of the echo model for the whole module, in a loop of its own."""
    redis_server.flush()
    runners = {"parrot": Echo(RunnerOptions("echo", context_window=32))}
    with asyncio.Runner() as runner:
        redis = runner.run(_connect(redis_server.url))
        inside = fleet_inside(redis, runners, max_new_tokens=8)
        yield runner, runner.run(inside.__aenter__())
        runner.run(inside.__aexit__(None, None, None))
        runner.run(redis.aclose())


async def _connect(url: str) -> Any:
    return connect(url)


@pytest.mark.parametrize("path", sorted(FIELDS))
def test_any_body_is_answered_in_shape(
    path: str, fleet: tuple[asyncio.Runner, httpx.AsyncClient]
) -> None:
    statuses: set[int] = set()

    @settings(
        max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(bodies(path))
    @example(json.dumps(RIGHT[path]).encode())
    def try_one(body: bytes) -> None:
        answer = post(fleet, path, body)
        statuses.add(answer.status_code)
        check(path, answer)

    try_one()
    # Bodies that are all right or all wrong would prove little.
    assert {200, invalid_status(path)} <= statuses
    sound = json.dumps(RIGHT[path]).encode()
    assert post(fleet, path, sound).status_code == 200


def check(path: str, answer: httpx.Response) -> None:
    """Check that the answer has a status and a shape of the dialect."""
    status = answer.status_code
    assert status in (200, 400, 404, invalid_status(path)), (status, answer.text)

    is_json = answer.headers["content-type"].startswith("application/json")
    if status == 200 and not is_json:
        assert '"error"' not in answer.text
        if path.startswith("/v1/"):
            assert answer.text.endswith("data: [DONE]\n\n")
        return

    body = answer.json()
    if status == 200:
        assert ANSWER_KEYS[path] & body.keys()
    elif isinstance(body["error"], str):
        assert path == "/generate"
        assert body.keys() == {"error", "error_type"}
    else:
        assert body["error"]["message"]
        assert body["error"].keys() == error_keys(path)


def post(
    fleet: tuple[asyncio.Runner, httpx.AsyncClient], path: str, content: bytes
) -> httpx.Response:
    runner, client = fleet
    headers = {"Content-Type": "application/json"}
    return runner.run(client.post(path, content=content, headers=headers))


def invalid_status(path: str) -> int:
    if path.startswith("/api/"):
        return 422
    return 400


def error_keys(path: str) -> set[str]:
    if path.startswith("/api/"):
        return API_KEYS
    if path.startswith("/v1/"):
        return OPENAI_KEYS
    return PLAIN_KEYS


@pytest.mark.parametrize(
    "number", [2**63, 2**64, 2**200, -(2**70), 1e308, float("inf"), float("nan")]
)
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_numbers_that_no_wire_can_carry(
    path: str, number: float, fleet: tuple[asyncio.Runner, httpx.AsyncClient]
) -> None:
    """A number that the front admits in any field survives msgpack, the worker and the way back."""
    sound: dict[str, Any] = {"prompt": "ab"}
    if path == "/generate":
        sound = {"prompts": ["ab"]}

    for name in FIELDS[path]:
        body = json.dumps(sound | {name: number})
        check(path, post(fleet, path, body.encode()))
