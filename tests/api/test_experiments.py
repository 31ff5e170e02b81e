"""Experiments: a name that stands for several models, and splits its requests among them."""

import math
from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from api.submit.experiments import arm_for
from shared.access import Grant, Keyring
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.experiment_log import ExperimentLog
from shared.settings.experiments import Experiment, entries_of
from tests.fixtures.api.echo_worker import ALL_TASKS, EchoWorker, announce, model_info
from tests.fixtures.api.errors import read_error
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.jobs import LATER, ended
from tests.fixtures.posts import NOT_JSON, POSTS

SPLIT = {"split": {"left": 0.5, "right": 0.5}}
ASK = {"model": "split", "prompts": ["a b"]}
NUM_KEYS = 20_000
WITH_MODEL = frozenset({"model", "model_id"})
"""Fields of answers that name the model."""


def experiment(**weights: float) -> Experiment:
    [entry] = entries_of({"split": weights})
    return Experiment.model_validate(entry)


def arms_of(split: Experiment, num_keys: int = NUM_KEYS) -> list[str]:
    return [arm_for(split, "public", f"user-{number}") for number in range(num_keys)]


# The choice of an arm.


@pytest.mark.parametrize(
    "weights", [{"a": 0.5, "b": 0.5}, {"a": 9, "b": 1}, {"a": 1, "b": 2, "c": 5}]
)
def test_arms_have_their_shares(weights: dict[str, float]) -> None:
    """Each share lies within four standard deviations of a binomial distribution."""
    counts = Counter(arms_of(experiment(**weights)))
    for model, weight in weights.items():
        share = weight / sum(weights.values())
        deviation = math.sqrt(NUM_KEYS * share * (1 - share))
        assert abs(counts[model] - NUM_KEYS * share) < 4 * deviation


def test_the_choice_is_the_same_on_every_front_and_in_every_version() -> None:
    assert arms_of(experiment(a=1, b=1, c=2), 12) == list("bcaaacccccbb")


@given(st.text(), st.text(), st.floats(1e-6, 1e6))
def test_neither_the_order_nor_the_scale_of_weights_matters(
    tenant: str, key: str, scale: float
) -> None:
    arm = arm_for(experiment(a=1, b=2, c=3), tenant, key)
    assert arm_for(experiment(c=3, a=1, b=2), tenant, key) == arm
    # A power of two changes no digit of a quotient.
    power = 2.0 ** round(math.log2(scale))
    assert arm_for(experiment(a=power, b=2 * power, c=3 * power), tenant, key) == arm


@given(
    st.text(),
    st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 100), min_size=2),
    st.floats(1, 100),
)
def test_a_key_moves_only_to_an_arm_whose_weight_grows(
    key: str, weights: dict[str, float], factor: float
) -> None:
    before = arm_for(experiment(**weights), "t", key)
    for model, weight in weights.items():
        grown = weights | {model: weight * factor}
        assert arm_for(experiment(**grown), "t", key) in (before, model)
        if len(weights) > 2:
            others = dict(weights)
            del others[model]
            assert arm_for(experiment(**others), "t", key) == before or before == model


def test_no_more_keys_move_than_must() -> None:
    """From one half to two thirds a sixth of the keys moves."""
    before = arms_of(experiment(a=1, b=1))
    after = arms_of(experiment(a=2, b=1))
    moved = sum(one != other for one, other in zip(before, after, strict=True))
    assert abs(moved / NUM_KEYS - 1 / 6) < 0.012


def test_tenants_and_experiments_are_split_apart() -> None:
    split = experiment(a=1, b=1)
    [entry] = entries_of({"other": {"a": 1, "b": 1}})
    other = Experiment.model_validate(entry)
    texts = [f"user-{number}" for number in range(200)]
    ours = [arm_for(split, "ann", text) for text in texts]
    assert ours != [arm_for(split, "bob", text) for text in texts]
    assert ours != [arm_for(other, "ann", text) for text in texts]


# The way of a request.


@pytest.fixture
async def workers(redis: Redis, redis_url: str) -> AsyncIterator[None]:
    """Workers for every endpoint, one for each arm."""
    # Both workers have one name, so that of their announcements only the later one is left.
    await announce(redis, "left", "right", tasks=ALL_TASKS)
    left = model_info("left", tasks=ALL_TASKS)
    right = model_info("right", tasks=ALL_TASKS)
    async with EchoWorker(redis_url, left), EchoWorker(redis_url, right):
        yield


@pytest.fixture
async def front(redis: Redis, workers: None) -> AsyncIterator[httpx.AsyncClient]:
    async with in_memory(redis, ab=SPLIT) as client:
        yield client


def arm_in(answer: httpx.Response) -> str:
    """Return the arm that an answer tells, and check that it tells the experiment."""
    assert answer.headers["X-AB-Experiment"] == "split"
    return answer.headers["X-AB-Arm"]


def field_of_model(path: str) -> str:
    return "model_id" if path.startswith("/api/inference") else "model"


def models_named(answer: object) -> set[str]:
    """Return the values of all fields of an answer that name a model."""
    named: set[str] = set()
    if isinstance(answer, list):
        for part in answer:
            named |= models_named(part)
    if isinstance(answer, dict):
        for name, value in answer.items():
            if name in WITH_MODEL:
                named.add(value)
            else:
                named |= models_named(value)
    return named


@pytest.mark.parametrize(("path", "body"), POSTS)
async def test_every_dialect_tells_the_arm(
    front: httpx.AsyncClient, path: str, body: dict[str, object]
) -> None:
    asked = body | {field_of_model(path): "split"}
    arms = set()
    for number in range(8):
        headers = {"X-AB-Key": f"user-{number % 4}"}
        answer = await front.post(path, json=asked, headers=headers)
        assert answer.status_code == 200, answer.text
        expected = arm_for(experiment(left=0.5, right=0.5), "public", f"user-{number % 4}")
        assert arm_in(answer) == expected
        arms.add(expected)
        if path not in NOT_JSON and answer.headers["content-type"] == "application/json":
            assert models_named(answer.json()) <= {expected}
    assert arms == {"left", "right"}


async def test_the_hub_splits_too(front: httpx.AsyncClient) -> None:
    """There the model is a part of the path."""
    split = experiment(left=0.5, right=0.5)
    for key in ("user-1", "user-2", "user-3"):
        body = {"inputs": "a b", "parameters": {"temperature": 0.5}}
        answer = await front.post("/hub/split", json=body, headers={"X-AB-Key": key})
        assert answer.status_code == 200, answer.text
        assert arm_in(answer) == arm_for(split, "public", key)


async def test_requests_of_no_experiment_have_no_labels(
    front: httpx.AsyncClient, redis: Redis
) -> None:
    answer = await front.post("/generate", json=ASK | {"model": "left"})
    assert answer.status_code == 200
    assert "X-AB-Arm" not in answer.headers
    assert "X-AB-Experiment" not in answer.headers
    assert await redis.keys("*outcomes*") == []


async def test_jobs_and_streams_tell_the_arm(front: httpx.AsyncClient) -> None:
    headers = LATER | {"X-AB-Key": "user-1"}
    accepted = await front.post("/v1/jobs", json=ASK | {"task": "generate"}, headers=headers)
    assert accepted.status_code == 202
    arm = arm_in(accepted)
    location = accepted.headers["Location"]

    job = await ended(front, location)
    assert arm_in(job) == arm
    assert job.json()["model"] == arm
    events = await front.get(f"{location}/events")
    assert arm_in(events) == arm
    assert arm_in(await front.delete(location)) == arm

    stream = {"model": "split", "prompt": "a b", "stream": True}
    begun = await front.post("/v1/completions", json=stream, headers={"X-AB-Key": "user-1"})
    assert arm_in(begun) == arm
    assert f'"model":"{arm}"' in begun.text
    last_id = begun.text.partition("id: ")[2].partition("\n")[0]
    resumed = await front.post("/v1/completions", json=stream, headers={"Last-Event-ID": last_id})
    assert arm_in(resumed) == arm


async def test_what_is_sticky(front: httpx.AsyncClient) -> None:
    """The header comes before the field `user`. Without both, requests are spread at random."""
    chat = {"model": "split", "messages": [{"role": "user", "content": "a"}]}
    split = experiment(left=0.5, right=0.5)
    for name in ("ann", "bob", "cy", "dee"):
        by_user = await front.post("/v1/chat/completions", json=chat | {"user": name})
        assert arm_in(by_user) == arm_for(split, "public", name)
        headers = {"X-AB-Key": name}
        by_header = await front.post(
            "/v1/chat/completions", json=chat | {"user": "eve"}, headers=headers
        )
        assert arm_in(by_header) == arm_for(split, "public", name)

    arms = Counter()
    for _ in range(40):
        arms[arm_in(await front.post("/generate", json=ASK))] += 1
    assert arms["left"] >= 3
    assert arms["right"] >= 3


@pytest.mark.parametrize("key", ["", "k" * 257, "a\tb"])
async def test_a_bad_key_is_refused_by_name(front: httpx.AsyncClient, key: str) -> None:
    answer = await front.post("/generate", json=ASK, headers={"X-AB-Key": key})
    assert answer.status_code == 400
    error = read_error(answer)
    assert error.field == "X-AB-Key"
    assert error.message == "X-AB-Key: expected 1 to 256 printable characters."


async def test_a_request_that_comes_again_keeps_its_arm(
    front: httpx.AsyncClient, redis: Redis
) -> None:
    """That holds even if the weights have changed meanwhile."""
    first_arms = {}
    for number in range(6):
        answer = await front.post("/generate", json=ASK, headers={"Idempotency-Key": f"{number}"})
        first_arms[number] = (arm_in(answer), answer.headers["X-Job-Id"])
    assert len({arm for arm, _ in first_arms.values()}) == 2

    changed = {"split": {"left": 1000.0, "other": 0.1, "right": 0.001}}
    async with in_memory(redis, ab=changed) as later:
        for number, first in first_arms.items():
            again = await later.post(
                "/generate", json=ASK, headers={"Idempotency-Key": f"{number}"}
            )
            assert (arm_in(again), again.headers["X-Job-Id"]) == first


async def test_errors_tell_the_arm(redis: Redis) -> None:
    await announce(redis, "left", "right", state="draining")
    async with in_memory(redis, ab=SPLIT) as client:
        answer = await client.post("/generate", json=ASK, headers={"X-AB-Key": "user-1"})
    assert answer.status_code == 503
    expected = arm_for(experiment(left=0.5, right=0.5), "public", "user-1")
    assert arm_in(answer) == expected
    assert expected in answer.json()["error"]["message"]


async def test_a_key_that_may_not_use_an_arm(redis: Redis, workers: None) -> None:
    grant = Grant(name="cy", tenant="cy", models=("left",))
    key, _, _ = await Keyring(Broker(redis)).create(grant)
    split = experiment(left=0.5, right=0.5)
    async with in_memory(redis, ab=SPLIT) as client:
        client.headers["X-API-Key"] = key
        for number in range(6):
            text = f"user-{number}"
            answer = await client.post("/generate", json=ASK, headers={"X-AB-Key": text})
            allowed = arm_for(split, "cy", text) == "left"
            assert answer.status_code == (200 if allowed else 403), answer.text
        listed = (await client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["left"]
        assert (await client.get("/v1/models/split")).status_code == 403


async def test_clients_find_experiments_among_the_models(front: httpx.AsyncClient) -> None:
    listed = (await front.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["left", "right", "split"]
    assert (await front.get("/v1/models/split")).json() == listed[-1]
    assert listed[-1]["max_model_len"] == 2048
    assert listed[-1]["description"] == "an experiment with left: 0.5, right: 0.5"
    described = await front.get("/model/info", params={"model": "split"})
    assert described.status_code == 200


async def test_an_experiment_is_listed_when_all_its_arms_are_served(redis: Redis) -> None:
    await announce(redis, "left")
    async with in_memory(redis, ab=SPLIT) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["left"]
        assert (await client.get("/v1/models/split")).status_code == 404


async def test_no_model_of_the_catalogue_takes_the_name_of_an_experiment(redis: Redis) -> None:
    async with in_memory(redis, ab=SPLIT, admin_keys="boss") as client:
        client.headers["X-API-Key"] = "boss"
        refused = await client.post("/api/models/add", json={"id": "split", "path": "echo"})
    assert refused.status_code == 400
    assert "split" in refused.text


async def test_arms_are_counted(front: httpx.AsyncClient, redis: Redis) -> None:
    """Each request is counted once, and each of its jobs is an outcome."""
    headers = {"X-AB-Key": "user-1", "Idempotency-Key": "k"}
    body = ASK | {"prompts": ["a b", "c"]}
    arm = ""
    for _ in range(2):
        answer = await front.post("/generate", json=body, headers=headers)
        arm = arm_in(answer)
    metrics = (await front.get("/metrics")).text
    labels = f'{{arm="{arm}",experiment="split"}}'
    assert f"aios_ab_requests_total{labels} 1.0" in metrics
    assert f"\nab_requests_total{labels} 1.0" in metrics

    outcomes = await ExperimentLog(Broker(redis)).outcomes("split")
    assert len(outcomes) == 2
    for outcome in outcomes:
        assert outcome.request_id == answer.headers["X-Job-Id"]
        assert outcome.arm == arm
        assert outcome.state == "done"
        assert outcome.first_ms is not None


async def test_a_cancelled_request_is_an_outcome(redis: Redis) -> None:
    await announce(redis, "left", "right")
    async with in_memory(redis, ab=SPLIT) as client:
        accepted = await client.post("/generate", json=ASK, headers=LATER)
        for _ in range(2):
            await client.delete(accepted.headers["Location"])
    [outcome] = await ExperimentLog(Broker(redis)).outcomes("split")
    assert outcome.state == "cancelled"
    assert outcome.arm == arm_in(accepted)


# Feedback.


async def rated(client: httpx.AsyncClient, id: object, **body: object) -> httpx.Response:
    return await client.post("/v1/feedback", json={"id": id, "score": 1} | body)


async def scores(redis: Redis) -> dict[str, tuple[float, str]]:
    """Return score and comment by the id of the request."""
    found = {}
    for feedback in await ExperimentLog(Broker(redis)).feedback("split"):
        found[feedback.request_id] = (feedback.score, feedback.comment)
    return found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/moderations", {"input": "a"}),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
    ],
)
async def test_feedback_by_the_id_of_an_answer(
    front: httpx.AsyncClient, redis: Redis, path: str, body: dict[str, object]
) -> None:
    answer = await front.post(path, json=body | {"model": "split"})
    id = answer.json()["id"]

    noted = await rated(front, id, score=-0.25, comment="wrong")

    assert noted.status_code == 200, noted.text
    arm = arm_in(answer)
    assert noted.json() == {
        "object": "feedback",
        "id": id,
        "experiment": "split",
        "arm": arm,
        "score": -0.25,
    }
    assert arm_in(noted) == arm
    assert await scores(redis) == {answer.headers["X-Job-Id"]: (-0.25, "wrong")}


async def test_feedback_by_the_id_of_a_job(front: httpx.AsyncClient, redis: Redis) -> None:
    """A later feedback replaces an earlier one."""
    answer = await front.post("/generate", json=ASK)
    id = answer.headers["X-Job-Id"]
    assert (await rated(front, id, score=-1, comment="no")).status_code == 200
    assert (await rated(front, id, score=1)).status_code == 200
    assert await scores(redis) == {id: (1.0, "")}


async def test_feedback_after_the_result_has_expired(
    front: httpx.AsyncClient, redis: Redis
) -> None:
    answer = await front.post("/generate", json=ASK)
    id = answer.headers["X-Job-Id"]
    await redis.delete(keys.request(id))
    assert (await front.get(f"/v1/jobs/{id}")).status_code == 404
    assert (await rated(front, id)).status_code == 200


async def test_feedback_on_a_request_of_no_experiment(front: httpx.AsyncClient) -> None:
    answer = await front.post("/generate", json=ASK | {"model": "left"})
    refused = await rated(front, answer.headers["X-Job-Id"])
    assert refused.status_code == 400
    assert read_error(refused).message == "id: this request is of no experiment."
    assert read_error(refused).field == "id"


async def test_feedback_is_for_the_tenant_of_the_request(redis: Redis, workers: None) -> None:
    async with in_memory(redis, ab=SPLIT, api_keys="ann:key-a,bob:key-b") as client:
        ann = {"X-API-Key": "key-a"}
        answer = await client.post("/generate", json=ASK, headers=ann)
        body = {"id": answer.headers["X-Job-Id"], "score": 1}
        for headers, status in (({"X-API-Key": "key-b"}, 404), ({}, 401), (ann, 200)):
            rating = await client.post("/v1/feedback", json=body, headers=headers)
            assert rating.status_code == status
    assert list(await scores(redis)) == [body["id"]]


@pytest.mark.parametrize("id", ["x", "cmpl-", "0" * 34, "cmpl-" + "f" * 34, "a b", "\u00fc"])
async def test_feedback_on_nothing(front: httpx.AsyncClient, id: str) -> None:
    answer = await rated(front, id)
    assert answer.status_code == 404
    assert read_error(answer).code == "job_not_found"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": None}, "id"),
        ({"id": ""}, "id"),
        ({"id": 7}, "id"),
        ({"score": None}, "score"),
        ({"score": 1.01}, "score"),
        ({"score": -2}, "score"),
        ({"score": "1"}, "score"),
        ({"score": True}, "score"),
        ({"comment": "c" * 2001}, "comment"),
        ({"comment": 1}, "comment"),
    ],
)
async def test_wrong_feedback(
    front: httpx.AsyncClient, redis: Redis, change: dict[str, object], field: str
) -> None:
    answer = await front.post("/generate", json=ASK)
    body = {"id": answer.headers["X-Job-Id"], "score": 1} | change
    refused = await front.post("/v1/feedback", json=body)
    assert refused.status_code == 400
    assert read_error(refused).field == field
    assert await scores(redis) == {}


async def test_feedback_counts_for_the_rate_of_its_key(redis: Redis, workers: None) -> None:
    async with in_memory(redis, ab=SPLIT, rate_limit="2/60") as client:
        answer = await client.post("/generate", json=ASK)
        statuses = []
        for _ in range(2):
            statuses.append((await rated(client, answer.headers["X-Job-Id"])).status_code)
    assert statuses == [200, 429]
