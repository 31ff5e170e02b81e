"""The page *Compare* on a real fleet, by itself and in a browser."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.async_api import FloatRect, Page, expect
from streamlit.testing.v1 import AppTest

from tests.fixtures.browser import DESKTOP, PHONE, expect_no_overflow, opened
from tests.fixtures.e2e.app_pages import (
    TOLERATED,
    app_flags,
    click,
    htmls,
    page_of,
    text_of,
    wait_for,
)
from tests.fixtures.e2e.serving import Serving, serving
from tests.fixtures.redis_server import free_port

SUM = "Compute: 347 + 285"
MODELS = ["maths", "brain"]
LINK = "/compare?compare_models=maths&compare_models=brain"


@pytest.fixture(scope="module")
def app_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def fleet(app_port: int) -> Iterator[Serving]:
    with serving(*app_flags(app_port, maths="hrm-text-math", brain="actv1-math")) as running:
        yield running


@pytest.fixture
def open_page(fleet: Serving, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Return a function that opens the page with the parameters of a link."""
    monkeypatch.setenv("API_URL", fleet.url)
    monkeypatch.delenv("API_KEY", raising=False)
    return lambda **fields: page_of("compare", compare_models=MODELS, **fields)


def completion(fleet: Serving, model: str, prompt: str, **sampling: object) -> str:
    """Return an answer by the server itself."""
    body = {"model": model, "prompts": [prompt], "max_tokens": 100, **sampling}
    answer = httpx.post(f"{fleet.url}/generate", json=body, timeout=60).json()
    text: str = answer["completions"][0]
    return text


def solution(fleet: Serving, model: str, problem: str) -> dict[str, str]:
    """Return the greedy solution of a problem in maths by the server itself."""
    body = {"model": model, "problem": problem, "temperature": 0}
    solved: dict[str, str] = httpx.post(f"{fleet.url}/solve/math", json=body, timeout=60).json()
    return solved


def test_models_answer_side_by_side(open_page: Callable[..., AppTest], fleet: Serving) -> None:
    """With one seed each model gives what it gives alone; the words that differ are marked."""
    page = open_page(
        compare_prompts=SUM, compare_temperature="1.0", compare_seed="7", compare_max_tokens="100"
    )
    click(page, "Compare")
    wait_for(page, lambda: len(page.metric) == 8, "both answers have their figures")
    assert [title.value for title in page.subheader] == MODELS

    first, second = htmls(page)
    alone = [completion(fleet, model, SUM, temperature=1.0, seed=7) for model in MODELS]
    assert text_of(first) == alone[0]
    assert text_of(second, "del") == alone[1]
    assert text_of(second, "ins").replace("\u21b5", "\n") == alone[0]
    assert "<ins " in second

    # Without marks both are shown as they are.
    page.toggle(key="compare_marks").set_value(False).run()
    assert [text_of(block) for block in htmls(page)] == alone


def test_a_set_of_prompts_becomes_a_table(
    open_page: Callable[..., AppTest], fleet: Serving
) -> None:
    prompts = ["12 + 7", "37 + 82", SUM]
    page = open_page(compare_prompts="\n".join(prompts), compare_form="maths problem")
    click(page, "Compare")
    wait_for(page, lambda: page.dataframe, "there is a table")
    wait_for(page, lambda: "..." not in str(page.dataframe[0].value), "all answers are there")

    table = page.dataframe[0].value
    for row, prompt in enumerate(prompts):
        answers = [solution(fleet, model, prompt)["answer"] for model in MODELS]
        assert table.loc[row].tolist()[:3] == [prompt, *answers]
    assert table["maths"].tolist() == ["19", "119", "632"]
    assert table["Agree"].tolist() == ["2 of 2", "2 of 2", "1 of 2"]
    assert any("agree on 2 of 3 prompts" in caption.value for caption in page.caption)
    assert page.dataframe[1].value["Answers"].tolist() == ["3", "3"]

    page.selectbox(key="compare_shown").set_value(SUM).run()
    assert text_of(htmls(page)[0]) == solution(fleet, "maths", SUM)["solution"]


def test_stop_cancels_all_answers(open_page: Callable[..., AppTest], fleet: Serving) -> None:
    page = open_page(compare_prompts="1 + 1\n2 + 2")
    [worker] = fleet.children("worker")
    worker.suspend()
    try:
        click(page, "Compare")
        click(page, "Stop")
    finally:
        worker.resume()
    wait_for(page, lambda: page.session_state["compare"].run.is_done, "all have ended")
    jobs = [run.job_id for run in page.session_state["compare"].run.runs]
    states = []
    for job in jobs:
        answer = httpx.get(f"{fleet.url}/v1/jobs/{job}", timeout=60)
        states.append(answer.json()["state"])
    assert states == ["cancelled"] * 4
    assert not page.error


def test_a_fault_is_told(open_page: Callable[..., AppTest]) -> None:
    page = open_page()
    click(page, "Compare")
    assert [error.value for error in page.error] == ["Write a prompt first."]
    page.text_area(key="compare_prompts").set_value("\n".join(map(str, range(51)))).run()
    click(page, "Compare")
    assert "102 answers; at most 100" in page.error[0].value
    page.multiselect(key="compare_models").set_value(["maths"]).run()
    click(page, "Compare")
    assert [error.value for error in page.error] == ["Choose two models or more."]


async def test_a_person_compares(fleet: Serving, app_port: int) -> None:
    """Answers stand side by side on a desktop, and one below the other on a phone."""
    url = f"http://127.0.0.1:{app_port}"
    async with opened(url, DESKTOP, path=LINK, tolerated=TOLERATED) as page:
        await page.get_by_role("textbox", name="Prompts").fill(f"{SUM}\n1 + 1")
        await page.get_by_role("button", name="Compare", exact=True).click()
        speeds = page.get_by_test_id("stMetricValue").filter(has_text="tokens/s")
        await expect(speeds).to_have_count(2, timeout=60_000)
        await expect(page.locator("ins").first).to_have_css("text-decoration-line", "underline")
        left, right = [await place_of(page, model) for model in MODELS]
        assert left["y"] == right["y"]
        assert left["x"] < right["x"]

        await page.set_viewport_size({"width": PHONE, "height": 800})
        await expect(page.get_by_test_id("stSidebar")).not_to_be_in_viewport()
        above, below = [await place_of(page, model) for model in MODELS]
        assert above["x"] == below["x"]
        assert above["y"] < below["y"]
        await expect_no_overflow(page)


async def place_of(page: Page, model: str) -> FloatRect:
    """Return the place of the heading above a model's answer."""
    box = await page.get_by_role("heading", name=model).bounding_box()
    assert box is not None
    return box
