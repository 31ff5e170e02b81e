"""`/v1/puzzles/arc`: a job for each augmentation of each input, the vote, and the refusals."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from shared.errors import InvalidRequest
from shared.messages import Augmentation, Halt, Solve
from tests.fixtures.api.echo_worker import NUM_AUGMENTATIONS, EchoWorker, model_info
from tests.fixtures.api.fronts import in_memory

PATH = "/v1/puzzles/arc"
RIGHT = [[7, 0], [0, 7]]
BLANK = [[0, 0], [0, 0]]
"""The answer of the echo worker under augmentation 1."""
BODY = {"task_id": "007bbfb7", "test": [{"input": RIGHT}]}


@pytest.fixture
async def solver(redis_url: str) -> AsyncIterator[EchoWorker]:
    async with EchoWorker(redis_url, model_info("arc", tasks=("solve",))) as worker:
        yield worker


async def test_the_inputs_are_answered_in_order_by_a_vote(
    client: httpx.AsyncClient, solver: EchoWorker
) -> None:
    """The grid with more votes comes first, and one that has no output is neither right nor wrong."""
    pairs = [
        {"input": RIGHT, "output": RIGHT},
        {"input": [[1, 2, 3]]},
        {"input": [[4]], "output": [[0]]},
        {"input": [[5]], "output": [[6]]},
    ]
    answer = await client.post(PATH, json=BODY | {"test": pairs, "augmentations": 3})

    assert answer.status_code == 200
    assert answer.json() == {
        "model": "arc",
        "task_id": "007bbfb7",
        "answers": [
            {"attempts": attempts(RIGHT, BLANK), "right": True},
            {"attempts": attempts([[1, 2, 3]], [[0, 0, 0]]), "right": None},
            {"attempts": attempts([[4]], [[0]]), "right": True},
            {"attempts": attempts([[5]], [[0]]), "right": False},
        ],
        "num_augmentations": 3,
        "valid": None,
        "usage": {"prompt_tokens": 972, "completion_tokens": 0, "total_tokens": 972},
    }


def attempts(first: list[list[int]], second: list[list[int]]) -> list[dict[str, Any]]:
    return [
        {"grid": first, "votes": 2, "mean_q": 0.25},
        {"grid": second, "votes": 1, "mean_q": 0.25},
    ]


async def test_each_augmentation_of_each_input_is_a_job(
    client: httpx.AsyncClient, solver: EchoWorker
) -> None:
    body = BODY | {"test": [{"input": [[1]]}, {"input": [[2]]}], "augmentations": 2}
    assert (await client.post(PATH, json=body)).status_code == 200
    assert [job.task for job in solver.jobs] == [
        Solve(((1,),), augmentation=Augmentation("007bbfb7", 0)),
        Solve(((1,),), augmentation=Augmentation("007bbfb7", 1)),
        Solve(((2,),), augmentation=Augmentation("007bbfb7", 0)),
        Solve(((2,),), augmentation=Augmentation("007bbfb7", 1)),
    ]

    solver.jobs.clear()
    await client.post(PATH, json=BODY)
    assert len(solver.jobs) == 30


@pytest.mark.parametrize(
    ("fields", "halt", "max_steps"),
    [
        ({"halt": "q"}, "q_halt", None),
        ({"halt": "steps=5"}, "max", 5),
        ({"halt": "max", "max_steps": 7}, "max", 7),
    ],
)
async def test_rules_of_halting(
    client: httpx.AsyncClient,
    solver: EchoWorker,
    fields: dict[str, Any],
    halt: Halt,
    max_steps: int | None,
) -> None:
    answer = await client.post(PATH, json=BODY | fields | {"augmentations": 1})
    [job] = solver.jobs
    expected = Augmentation("007bbfb7", 0)
    assert job.task == Solve(((7, 0), (0, 7)), None, halt, max_steps, augmentation=expected)
    assert answer.json()["usage"].get("max_steps") == max_steps


async def test_augmentations_that_the_task_does_not_have_are_not_counted(
    client: httpx.AsyncClient, solver: EchoWorker
) -> None:
    answer = (await client.post(PATH, json=BODY | {"augmentations": 9})).json()
    assert answer["num_augmentations"] == NUM_AUGMENTATIONS
    votes = [attempt["votes"] for attempt in answer["answers"][0]["attempts"]]
    assert votes == [NUM_AUGMENTATIONS - 1, 1]
    assert answer["usage"]["prompt_tokens"] == 81 * NUM_AUGMENTATIONS


async def test_as_many_attempts_as_asked_for(client: httpx.AsyncClient, solver: EchoWorker) -> None:
    """An output that only a later attempt has is not right then."""
    body = BODY | {"test": [{"input": RIGHT, "output": BLANK}], "augmentations": 3}
    for count, is_right in ((1, False), (2, True), (10, True)):
        [answer] = (await client.post(PATH, json=body | {"attempts": count})).json()["answers"]
        assert len(answer["attempts"]) == min(count, 2)
        assert answer["right"] is is_right


@pytest.mark.parametrize(
    ("outputs", "is_checked", "valid"),
    [
        ([[[1]], [[2]]], True, True),
        ([[[1]], [[3]]], True, False),
        # The second attempt does not count.
        ([[[0]], [[2]]], True, False),
        ([[[1]], [[3]]], False, None),
        ([], True, None),
    ],
)
async def test_demonstrations(
    client: httpx.AsyncClient,
    solver: EchoWorker,
    outputs: list[Any],
    is_checked: bool,
    valid: bool | None,
) -> None:
    """They are solved only where that is asked for, under the same augmentations."""
    train = []
    for colour, output in enumerate(outputs, start=1):
        train.append({"input": [[colour]], "output": output})
    body = BODY | {"train": train, "check_demonstrations": is_checked, "augmentations": 3}
    answer = await client.post(PATH, json=body)

    assert answer.json()["valid"] is valid
    assert len(answer.json()["answers"]) == 1
    assert len(solver.jobs) == 3 * (1 + is_checked * len(train))


async def test_a_whole_file_of_arc_with_the_name_of_its_task(
    client: httpx.AsyncClient, solver: EchoWorker
) -> None:
    """The id may be called task, but in /v1/jobs, where that is the kind of job."""
    file = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}], "name": "x"}
    answer = await client.post(PATH, json=file | {"task": "007bbfb7", "augmentations": 1})
    assert answer.json()["task_id"] == "007bbfb7"

    body = file | {"task": "arc", "task_id": "007bbfb7", "augmentations": 1}
    job = await client.post("/v1/jobs", json=body, headers={"Prefer": "wait=10"})
    assert job.json() == answer.json()
    refused = await client.post("/v1/jobs", json=file | {"task": "arc"})
    assert (refused.status_code, refused.json()["error"]["field"]) == (400, "task_id")


GRID = "expected 1 to 30 rows of equal length, 1 to 30, of numbers from 0 to 9"
BAD: list[tuple[Any, str, str]] = [
    ({"test": BODY["test"]}, "task_id", "puzzle embedding of a task is learnt in training"),
    ({"task": "007bbfb7"}, "test", "the server has the data of no task"),
    ({"task": "007bbfb7", "train": []}, "test", "the server has the data of no task"),
    (BODY | {"task_id": "x" * 129}, "task_id", "in 1 to 128 ASCII characters"),
    (BODY | {"task_id": "\ud800"}, "task_id", "in 1 to 128 ASCII characters"),
    ({"task": 7, "test": BODY["test"]}, "task", "in 1 to 128 ASCII characters"),
    (BODY | {"test": [{"input": [[1], [1, 2]]}]}, "test", f"test[0].input: {GRID}"),
    (BODY | {"test": [{"input": [[1] * 31]}]}, "test", f"test[0].input: {GRID}"),
    (BODY | {"test": [{"input": [[1]] * 31}]}, "test", f"test[0].input: {GRID}"),
    (BODY | {"test": [{"input": [[-1]]}]}, "test", f"test[0].input: {GRID}"),
    (BODY | {"test": [{"input": [[True]]}]}, "test", f"test[0].input: {GRID}"),
    (BODY | {"test": [{"input": [[1.0]]}]}, "test", f"test[0].input: {GRID}"),
    (BODY | {"test": [{"input": [[]]}]}, "test", f"test[0].input: {GRID}"),
    (BODY | {"test": [{"input": ["12"]}]}, "test", f"test[0].input: {GRID}"),
    (BODY | {"test": [{"input": [[1]], "output": []}]}, "test", f"test[0].output: {GRID}"),
    (BODY | {"train": [{"input": [[1]]}]}, "train", "train[0].output: this field is required"),
    (BODY | {"test": [{"input": [[1]]}] * 65}, "test", "at most 64 pairs in one request, got 65"),
    (BODY | {"augmentations": True}, "augmentations", "augmentations: "),
    (
        BODY | {"augmentations": 257},
        "augmentations",
        "takes 257 places in the queue, which has 256",
    ),
    (BODY | {"attempts": 0}, "attempts", "attempts: "),
    (BODY | {"check_demonstrations": "yes"}, "check_demonstrations", "check_demonstrations: "),
    (BODY | {"halt": "steps=3", "max_steps": 3}, "halt", "no steps=N beside max_steps or effort"),
    (BODY | {"effort": "low", "max_steps": 3}, "max_steps", "at most one of max_steps, effort"),
]


@pytest.mark.parametrize(("body", "field", "complaint"), BAD)
async def test_a_bad_body_is_refused_by_its_field(
    client: httpx.AsyncClient, solver: EchoWorker, body: Any, field: str, complaint: str
) -> None:
    answer = await client.post(
        PATH, content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["field"]) == ("invalid_request", field)
    assert complaint in error["message"]
    assert solver.jobs == []


async def test_too_many_demonstrations_are_no_fault_where_they_are_not_solved(
    client: httpx.AsyncClient, solver: EchoWorker
) -> None:
    train = [{"input": [[1]], "output": [[2]]}] * 65
    body = BODY | {"train": train, "augmentations": 1}
    assert (await client.post(PATH, json=body)).status_code == 200
    refused = await client.post(PATH, json=body | {"check_demonstrations": True})
    assert (refused.status_code, refused.json()["error"]["field"]) == (400, "train")


async def test_as_many_augmentations_as_the_queue_has_places(
    redis: Redis, solver: EchoWorker
) -> None:
    async with in_memory(redis, max_queue_depth=1000) as client:
        answer = await client.post(PATH, json=BODY | {"augmentations": 1000})
    assert answer.json()["num_augmentations"] == NUM_AUGMENTATIONS


async def test_what_only_the_worker_knows_is_a_400_as_well(
    client: httpx.AsyncClient, solver: EchoWorker
) -> None:
    solver.failure = InvalidRequest("task_id: unknown.", field="task_id").as_event()
    answer = await client.post(PATH, json=BODY)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "task_id")


async def test_a_model_of_text_is_given_no_tasks(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    answer = await client.post(PATH, json=BODY)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "model")
    assert worker.jobs == []
