"""The form of `GET /` in a real browser: text comes as it is written, and stops when asked to."""

from playwright.async_api import expect
from redis.asyncio import Redis

from tests.fixtures.api.echo_worker import EchoWorker, model_info
from tests.fixtures.api.fronts import live, states
from tests.fixtures.browser import DESKTOP, PHONE, expect_no_overflow, opened
from tests.fixtures.polling import until

PROMPT = "one <b>two</b> three"
TOLERATED = (
    # Chromium asks for an icon by itself.
    "Failed to load resource: the server responded with a status of 404",
    # What Chromium says of a refused request, which the page says, too.
    "Failed to load resource: the server responded with a status of 401",
)


async def test_text_comes_as_it_is_written_and_stops_when_asked_to(
    redis: Redis, worker: EchoWorker
) -> None:
    worker.gate.clear()
    async with (
        live(redis) as (client, _),
        opened(str(client.base_url), PHONE, tolerated=TOLERATED) as page,
    ):
        await expect_no_overflow(page)
        answer = page.get_by_label("Answer")
        status = page.get_by_role("status")
        await page.get_by_label("Prompt").fill(PROMPT)
        await page.get_by_role("button", name="Ask").click()
        await expect(answer).to_have_text("one")
        await expect(status).to_have_text("Writing ...")
        await page.get_by_role("button", name="Stop").click()
        await expect(status).to_have_text("Stopped.")

        async def is_cancelled() -> bool:
            return await states(redis) == ["cancelled"]

        await until(is_cancelled, "the front cancels the job")
        await expect(answer).to_have_text("one")

        # And it can be asked again.
        await page.get_by_role("button", name="Ask").click()
        await expect(status).to_have_text("Writing ...")
        worker.gate.set()
        await expect(answer).to_have_text(PROMPT)
        await expect(status).to_contain_text("Done in")
        await expect(page.get_by_role("button", name="Stop")).to_be_disabled()


async def test_a_closed_fleet_takes_a_key_and_a_refusal_is_told(
    redis: Redis, redis_url: str
) -> None:
    async with (
        EchoWorker(redis_url, model_info(is_default=True)),
        live(redis, api_keys="sesame") as (client, _),
        opened(str(client.base_url), DESKTOP, tolerated=TOLERATED) as page,
    ):
        await page.get_by_label("Prompt").fill(PROMPT)
        await page.get_by_role("button", name="Ask").click()
        await expect(page.get_by_role("status")).to_contain_text("key")
        await page.get_by_label("Key").fill("sesame")
        await page.get_by_role("button", name="Ask").click()
        await expect(page.get_by_label("Answer")).to_have_text(PROMPT)
