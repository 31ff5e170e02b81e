"""`/loglikelihood`: order, and one job for each distinct prompt."""

import httpx

from shared.messages import Score, Task
from tests.fixtures.api.echo_worker import EchoWorker, model_info


def sorted_tasks(worker: EchoWorker) -> list[Task]:
    """Return the tasks of the worker's jobs in the order of their texts: jobs are taken in any."""
    tasks = [job.task for job in worker.jobs]
    return sorted(tasks, key=str)


async def test_order_is_kept_and_equal_prompts_share_a_job(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    body = {
        "prompts": ["p", "q", "p", "", "q"],
        "continuations": ["a", "bb", "ccc", "dddd", "eeeee"],
        "scoring": "aios_compat",
        "condition": "direct",
    }
    answer = await client.post("/loglikelihood", json=body)

    assert answer.status_code == 200
    assert answer.json() == {
        "ll": [-1.0, -2.0, -3.0, -4.0, -5.0],
        "is_greedy": [False, False, False, False, False],
        "num_tokens": [1, 2, 3, 4, 5],
    }
    assert sorted_tasks(worker) == [
        Score("", ("dddd",), "direct", "aios_compat"),
        Score("p", ("a", "ccc"), "direct", "aios_compat"),
        Score("q", ("bb", "eeeee"), "direct", "aios_compat"),
    ]


async def test_rolling_scores_each_text_as_a_whole(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    body = {"prompts": ["one", "sixteen", "one"], "scoring": "strict", "condition": "cot"}
    answer = await client.post("/loglikelihood_rolling", json=body)

    assert answer.status_code == 200
    assert answer.json() == {"ll": [-3.0, -7.0, -3.0], "num_tokens": [3, 7, 3]}
    assert sorted_tasks(worker) == [
        Score("", ("one",), "cot", "strict", rolling=True),
        Score("", ("one",), "cot", "strict", rolling=True),
        Score("", ("sixteen",), "cot", "strict", rolling=True),
    ]


async def test_a_worker_that_cannot_score_is_not_asked(
    client: httpx.AsyncClient, redis_url: str
) -> None:
    async with EchoWorker(redis_url, model_info(tasks=("generate",))):
        scored = await client.post(
            "/loglikelihood", json={"prompts": ["p"], "continuations": ["a"]}
        )
        rolling = await client.post("/loglikelihood_rolling", json={"prompts": ["p"]})

    for answer in (scored, rolling):
        assert answer.status_code == 400
        assert "model" in answer.json()["error"]["message"]
