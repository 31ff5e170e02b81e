"""The pages *Batches* and *Fleet* of the web app on a real fleet: what callers and operators do."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from playwright.async_api import expect
from streamlit.testing.v1 import AppTest

from scripts.ui.client import Client
from scripts.ui.evaluations import report_page
from shared.shipped import shipped
from tests.fixtures.browser import DESKTOP, PHONE, expect_no_overflow, opened
from tests.fixtures.e2e.app_pages import TOLERATED, click, metrics, page_of, wait_for
from tests.fixtures.e2e.serving import Serving, serving
from tests.fixtures.redis_server import free_port

ADMIN = {"Authorization": "Bearer boss"}


@pytest.fixture(scope="module")
def app_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def fleet(app_port: int) -> Iterator[Serving]:
    """Run a fleet whose operator has a key, and the app beside it."""
    flags = ["--threads", "1", "--ui", "--ui-port", str(app_port)]
    flags += ["--model", f"maths={shipped('models/hrm-text-math')}", "--model", "steps=echo-task"]
    flags += ["--default-model", "maths", "--admin-keys", "ops:boss", "--require-key", "no"]
    with serving(*flags) as running:
        yield running


@pytest.fixture
def open_page(fleet: Serving, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Return a function that opens a page for an operator."""
    monkeypatch.setenv("API_URL", fleet.url)
    monkeypatch.setenv("API_KEY", "boss")
    return page_of


def lines_of(path: str, bodies: list[dict[str, Any]]) -> str:
    """Return the lines of a batch."""
    lines = []
    for number, body in enumerate(bodies):
        lines.append(json.dumps({"custom_id": f"line-{number}", "url": path, "body": body}))
    return "\n".join(lines)


def badges(page: AppTest) -> str:
    return " ".join(mark.value for mark in page.markdown)


def shown(fleet: Serving, path: str) -> Any:
    answer = httpx.get(f"{fleet.url}{path}", headers=ADMIN, timeout=60)
    assert answer.is_success, answer.text
    return answer.json()


def test_a_batch_is_answered(open_page: Callable[..., AppTest], fleet: Serving) -> None:
    """Its answers are those of the same requests, and its errors are told line by line."""
    bodies = [{"prompts": [f"Compute: {n} + 4"], "temperature": 0} for n in (1, 2)]
    page = open_page("batches")
    lines = lines_of("/generate", [*bodies, {"prompts": []}])
    page.file_uploader[0].set_value(("sums.jsonl", lines.encode(), "application/jsonl"))
    page.text_input(key="batch_window").set_value("1h")
    click(page, "Create batch")
    wait_for(page, lambda: len(page.get("download_button")) == 2, "it has ended")
    assert not page.error
    assert metrics(page)["Answered"] == "2"
    assert metrics(page)["Failed"] == "1"
    answers, errors, _ = page.dataframe
    for body, told in zip(bodies, answers.value["answer"], strict=True):
        alone = httpx.post(f"{fleet.url}/generate", json=body, timeout=60).json()
        assert json.loads(told)["completions"] == alone["completions"]
    assert list(errors.value["line"]) == [3]

    batch_id = page.selectbox(key="batch").value
    batch = shown(fleet, f"/v1/batches/{batch_id}")
    assert batch["completion_window"] == "1h"
    assert metrics(page)["Prompts"] == f"{batch['usage']['input_tokens']} tokens"
    page = open_page("batches", batch=batch_id)
    assert metrics(page)["Answered"] == "2"


def test_a_batch_is_cancelled(open_page: Callable[..., AppTest], fleet: Serving) -> None:
    body = {"model": "steps", "text": "a", "steps": 1000, "step_ms": 1000}
    page = open_page("batches")
    page.text_area(key="batch_lines").set_value(lines_of("/v1/echo-task", [body] * 3))
    click(page, "Create batch")
    wait_for(page, lambda: metrics(page)["Not run"] == "3", "its lines were read")
    click(page, "Cancel")
    wait_for(page, lambda: "cancelled" in badges(page), "it is cancelled")
    batch_id = page.selectbox(key="batch").value
    assert shown(fleet, f"/v1/batches/{batch_id}")["status"] == "cancelled"

    page.text_area(key="batch_lines").set_value("no request")
    click(page, "Create batch")
    assert "needs a url" in page.error[0].value


def test_an_evaluation_is_made(open_page: Callable[..., AppTest], fleet: Serving) -> None:
    page = open_page("batches", part="Evaluations")
    page.multiselect(key="eval_sets").set_value(["feature-extraction", "sudoku-4x4"])
    page.selectbox(key="eval_model").set_value("maths")
    click(page, "Evaluate")
    wait_for(page, lambda: page.subheader, "there is a report")
    assert page.subheader[0].value == "feature-extraction by maths"
    run_id = page.selectbox(key="evaluation").value
    report = shown(fleet, f"/api/evaluation/runs/{run_id}")["report"]
    [result] = report["results"]
    right = result["accuracy"]
    [bar] = page.get("progress")
    assert bar.proto.value == round(100 * right["value"])
    assert f"{100 * right['low']:.1f} to {100 * right['high']:.1f} %" in bar.proto.text
    latency = result["latency_ms"]
    assert metrics(page)["Latency"] == f"{latency['p50']:.0f} / {latency['p95']:.0f} ms"
    assert list(page.dataframe[0].value["item"]) == [item["id"] for item in result["items"]]
    assert any("sudoku-4x4" in text.value for text in page.caption)

    # The report by itself, and the evaluations before it.
    page_of_report = report_page(Client(fleet.url, "boss"), report, [run_id])
    assert report["id"] in page_of_report
    assert "<svg" in page_of_report
    assert run_id in list(page.dataframe[-1].value["id"])


def test_a_caller_is_told_what_is_for_operators(
    open_page: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others see their own part of it."""
    monkeypatch.delenv("API_KEY")
    page = open_page("batches", part="Evaluations")
    assert "enter an admin key" in page.info[0].value
    assert not page.error

    page = open_page("fleet")
    assert "enter an admin key" in page.info[0].value
    assert metrics(page)["Models served"] == "2 of 2"
    assert "Dead jobs" not in metrics(page)
    page.selectbox(key="fleet_model").set_value("steps")
    click(page, "Unload")
    assert "enter an admin key" in page.error[0].value


def test_the_fleet_is_told_as_it_is(open_page: Callable[..., AppTest], fleet: Serving) -> None:
    page = open_page("fleet", usage_by="by model")
    now = shown(fleet, "/v1/fleet")
    assert metrics(page)["Workers ready"] == "1 of 1"
    assert metrics(page)["Dead jobs"] == "0"
    models, workers = page.dataframe[0].value, page.dataframe[1].value
    assert list(models["model"]) == [model["id"] for model in now["models"]]
    assert list(models["status"]) == ["ready", "ready"]
    assert list(workers["worker"]) == [worker["id"] for worker in now["workers"]]
    usage = page.dataframe[-1].value
    rows = shown(fleet, "/v1/usage?group_by=model")["rows"]
    assert list(usage["prompt_tokens"]) == [row["prompt_tokens"] for row in rows]


def test_models_are_unloaded_and_loaded(open_page: Callable[..., AppTest], fleet: Serving) -> None:
    page = open_page("fleet")
    page.selectbox(key="fleet_model").set_value("maths")
    click(page, "Unload")
    assert [told.value for told in page.success] == ["maths: unloaded"]
    assert shown(fleet, "/api/models/status/maths")["status"] == "unloaded"
    for order, done in (("Pin", "pinned"), ("Unpin", "unpinned"), ("Load", "ordered")):
        click(page, order)
        assert [told.value for told in page.success] == [f"maths: {done}"]
        pinned = page.run().dataframe[0].value["pinned"]
        assert list(pinned) == [order == "Pin", False]

    def is_loaded() -> bool:
        return list(page.dataframe[0].value["status"]) == ["ready", "ready"]

    wait_for(page, is_loaded, "it is loaded again")


def test_a_key_is_made_and_revoked(open_page: Callable[..., AppTest], fleet: Serving) -> None:
    page = open_page("fleet")
    page.text_input(key="key_name").set_value("ann")
    page.text_input(key="key_rate").set_value("ten")
    click(page, "Make the key")
    assert "expected times/seconds, such as 10/60" in page.error[0].value

    page.text_input(key="key_rate").set_value("10/60")
    page.multiselect(key="key_models").set_value(["maths"])
    page.number_input(key="key_tokens").set_value(1000)
    page.number_input(key="key_days").set_value(2)
    click(page, "Make the key")
    assert not page.error
    [code] = page.code
    used = httpx.get(f"{fleet.url}/v1/usage", headers={"X-API-Key": code.value}, timeout=60)
    assert used.json()["budget"]["tokens"] == 1000
    [key] = shown(fleet, "/v1/keys")["data"]
    assert (key["name"], key["rate"], key["models"]) == ("ann", "10/60", ["maths"])
    [table] = [table.value for table in page.dataframe if "best class" in table.value]
    assert list(table["id"]) == [key["id"]]
    assert list(table["tokens"]) == ["0 of 1,000 a month"]

    click(page, "Revoke")
    assert page.error[0].value == "Choose the key to revoke."
    page.selectbox(key="revoked_key").set_value(key["id"])
    click(page, "Revoke")
    assert not page.error
    assert not page.code, "the key is shown once"
    assert shown(fleet, "/v1/keys")["data"] == []
    refused = httpx.get(f"{fleet.url}/v1/fleet", headers={"X-API-Key": code.value}, timeout=60)
    assert refused.status_code == 401


def test_a_job_is_found_and_cancelled(open_page: Callable[..., AppTest], fleet: Serving) -> None:
    body = {"model": "steps", "text": "a", "steps": 1000, "step_ms": 1000}
    headers = {"Prefer": "respond-async", **ADMIN}
    answer = httpx.post(f"{fleet.url}/v1/echo-task", json=body, headers=headers, timeout=60)
    job_id = answer.json()["id"]
    page = open_page("fleet", fleet_job=job_id)
    assert metrics(page)["Model"] == "steps"
    click(page, "Cancel the job")
    assert metrics(page)["State"] == "cancelled"
    assert shown(fleet, f"/v1/jobs/{job_id}")["state"] == "cancelled"
    page.text_input(key="fleet_job").set_value("unknown").run()
    assert page.error[0].value


async def test_an_operator_looks_after_it(fleet: Serving, app_port: int) -> None:
    """The key is entered by hand, and the figures of work appear in the plots."""
    url = f"http://127.0.0.1:{app_port}"
    async with opened(f"{url}/fleet", DESKTOP, tolerated=(url, *TOLERATED)) as page:
        await expect(page.get_by_text("enter an admin key")).to_be_visible(timeout=60_000)
        await page.get_by_label("Key", exact=True).fill("boss")
        await page.get_by_label("Key", exact=True).press("Enter")
        await expect(page.get_by_text("Dead jobs").first).to_be_visible(timeout=30_000)
        async with httpx.AsyncClient(timeout=60) as client:
            body = {"prompts": ["Compute: 3 + 4"], "max_tokens": 60}
            assert (await client.post(f"{fleet.url}/generate", json=body)).is_success
        await expect(page.locator("canvas, svg.marks").first).to_be_visible(timeout=30_000)
        await page.set_viewport_size({"width": PHONE, "height": 800})
        await expect_no_overflow(page)

        await page.get_by_role("link", name="Batches").click()
        await expect(page.get_by_role("heading", name="Batches")).to_be_visible()
        await page.get_by_text("New batch").click()
        await page.get_by_label("Or the lines themselves").fill(lines_of("/generate", [body]))
        await page.get_by_role("button", name="Create batch").click()
        await expect(page.get_by_text("1 of 1 lines")).to_be_visible(timeout=30_000)
        await expect(page.get_by_role("button", name="Download answers")).to_be_visible()
        await expect_no_overflow(page)
        await page.get_by_role("radio", name="Evaluations").click()
        await expect(page.get_by_role("button", name="Evaluate")).to_be_visible()
        await expect_no_overflow(page)
