"""`/v1/dead-jobs`: operators list jobs that workers died of, try them again, and drop them."""

from datetime import UTC, datetime

from redis.asyncio import Redis

from tests.fixtures.api.fronts import in_memory
from tests.fixtures.dead_letters import convict
from tests.fixtures.desk import SAY_HI, Desk

PATH = "/v1/dead-jobs"
KEYS = {"api_keys": "k:plain", "admin_keys": "boss:admin"}
ADMIN = {"X-API-Key": "admin"}


async def test_they_are_listed_tried_again_and_dropped(redis: Redis) -> None:
    desk = Desk(redis)
    first = await convict(redis, desk)
    second = await convict(redis, desk)
    async with in_memory(redis, **KEYS) as client:
        listed = (await client.get(PATH, headers=ADMIN)).json()["jobs"]
        assert [job["id"] for job in listed] == [second.id, first.id]
        assert (listed[0]["tenant"], listed[0]["worker"], listed[0]["takes"]) == ("acme", "w2", 3)
        age = datetime.now(UTC) - datetime.fromisoformat(listed[0]["at"])
        assert abs(age.total_seconds()) < 60
        assert "hi" not in str(listed), "what was asked is not told"

        answer = await client.post(f"{PATH}/{first.id}/retry", headers=ADMIN)
        new_id = answer.json()["retried_as"]
        (claim,) = await desk.take(5, is_empty=False)
        assert (claim.job.id, claim.job.task, claim.job.tenant) == (new_id, SAY_HI, "acme")

        answer = await client.delete(f"{PATH}/{second.id}", headers=ADMIN)
        assert answer.json() == {"id": second.id, "retried_as": None}
        assert (await client.get(PATH, headers=ADMIN)).json() == {"jobs": []}


async def test_others_are_not_found_and_callers_may_not_look(redis: Redis) -> None:
    async with in_memory(redis, **KEYS) as client:
        for answer in (
            await client.post(f"{PATH}/unknown/retry", headers=ADMIN),
            await client.delete(f"{PATH}/unknown", headers=ADMIN),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")
        answer = await client.get(PATH, headers={"X-API-Key": "plain"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")
