"""`/loglikelihood`: order, and one job for each distinct prompt."""

import httpx

from shared.messages import Score
from tests.api.echo_worker import EchoWorker, model_info


async def test_order_is_kept_and_equal_prompts_share_a_job(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    body = {"prompts": ["p", "q", "p", "", "q"], "continuations": ["a", "bb", "ccc", "dddd", "eeeee"]}
    answer = await client.post("/loglikelihood", json=body | {"scoring": "aios_compat", "condition": "direct"})
    assert answer.status_code == 200
    assert answer.json() == {"ll": [-1.0, -2.0, -3.0, -4.0, -5.0]}
    tasks = sorted((job.task for job in worker.jobs), key=str)
    assert tasks == sorted(
        [
            Score("p", ("a", "ccc"), "direct", "aios_compat"),
            Score("q", ("bb", "eeeee"), "direct", "aios_compat"),
            Score("", ("dddd",), "direct", "aios_compat"),
        ],
        key=str,
    )


async def test_a_worker_that_cannot_score_is_not_asked(client: httpx.AsyncClient, redis_url: str) -> None:
    async with EchoWorker(redis_url, model_info(tasks=("generate",))):
        answer = await client.post("/loglikelihood", json={"prompts": ["p"], "continuations": ["a"]})
    assert answer.status_code == 400
    assert "model" in answer.json()["error"]["message"]
