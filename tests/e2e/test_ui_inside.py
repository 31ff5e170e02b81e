"""The page *Inside the model* on a real fleet, by itself and in a browser."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from playwright.async_api import expect
from streamlit.testing.v1 import AppTest

from tests.fixtures.browser import PHONE, expect_no_overflow, opened
from tests.fixtures.e2e.app_pages import (
    TOLERATED,
    app_flags,
    click,
    htmls,
    metrics,
    page_of,
    text_of,
    wait_for,
)
from tests.fixtures.e2e.serving import Serving, serving
from tests.fixtures.redis_server import free_port

SUM = "Compute: 347 + 285"
SUDOKU = "1576...4..984.5.1.3.....856..2896573.3.72168.7..54.192..1...7.5.6927..31...1.4.6."

# Vega's advice on a chart whose data come after it, and on the axes of its bars.
TOLERATED_OF_CHARTS = ("WARN Infinite extent", "WARN Scale bindings")


@pytest.fixture(scope="module")
def app_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def fleet(app_port: int) -> Iterator[Serving]:
    models = {
        "maths": "hrm-text-math",
        "plain": "baseline-code",
        "brain": "actv1-math",
        "sudoku": "sample-trm-sudoku-9x9",
    }
    with serving(*app_flags(app_port, **models)) as running:
        yield running


@pytest.fixture
def open_page(fleet: Serving, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Return a function that opens the page with the parameters of a link."""
    monkeypatch.setenv("API_URL", fleet.url)
    monkeypatch.delenv("API_KEY", raising=False)
    return lambda **fields: page_of("inside", **fields)


def post(fleet: Serving, path: str, **body: object) -> Any:
    answer = httpx.post(f"{fleet.url}{path}", json=body, timeout=60)
    assert answer.is_success, answer.text
    return answer.json()


def titles(block: str) -> list[str]:
    """Return what is said of each token in a block."""
    return re.findall(r'title="([^"]*)"', block)


def test_an_answer_is_coloured_token_by_token(
    open_page: Callable[..., AppTest], fleet: Serving
) -> None:
    """The tokens, their log-probabilities and their alternatives are those of the server."""
    page = open_page(
        inside_prompt=SUM, inside_temperature="1.0", inside_seed="7", inside_max_tokens="60"
    )
    click(page, "Generate")
    wait_for(page, lambda: "Speed" in metrics(page), "the answer is there")

    fields = {"max_tokens": 60, "temperature": 1.0, "seed": 7, "logprobs": 3}
    answer = post(fleet, "/v1/completions", prompt=SUM, **fields)
    logprobs = answer["choices"][0]["logprobs"]
    block, _legend = htmls(page)
    assert text_of(block).replace("\u21b5", "") == "".join(logprobs["tokens"])
    assert len(titles(block)) == len(logprobs["tokens"])

    table = page.dataframe[0].value
    assert table["Log-probability"].tolist() == pytest.approx(logprobs["token_logprobs"], abs=1e-4)
    for said, top in zip(table["Alternatives"], logprobs["top_logprobs"], strict=True):
        assert said.count(" %") == len(top)
    assert any("maths: HRM-Text" in caption.value for caption in page.caption)
    total = sum(logprobs["token_logprobs"])
    assert float(metrics(page)["Log-likelihood"].split()[0]) == pytest.approx(total, abs=1e-3)


def test_each_token_tells_where_a_brain_stopped(
    open_page: Callable[..., AppTest], fleet: Serving
) -> None:
    """q_halt and q_continue, and the ACT segments, are those of the server; others have none."""
    page = open_page(
        inside_prompt=SUM, inside_temperature="0.0", inside_max_tokens="20", model="brain"
    )
    click(page, "Generate")
    wait_for(page, lambda: "Speed" in metrics(page), "the answer is there")

    fields = {"model": "brain", "max_tokens": 20, "temperature": 0, "logprobs": 3}
    answer = post(fleet, "/v1/completions", prompt=SUM, **fields)
    logprobs = answer["choices"][0]["logprobs"]
    table = page.dataframe[0].value
    for name in ("q_halt", "q_continue"):
        values = [values[name] for values in logprobs["q_values"]]
        assert table[name].tolist() == pytest.approx(values, abs=1e-3)
    assert table["ACT segments"].tolist() == logprobs["act_segments"]
    assert len(charts(page)) == 3

    page = open_page(inside_prompt=SUM, inside_temperature="0.0", inside_max_tokens="20")
    click(page, "Generate")
    wait_for(page, lambda: "Speed" in metrics(page), "the answer is there")
    assert "q_halt" not in page.dataframe[0].value
    assert len(charts(page)) == 1


def charts(page: AppTest) -> list[Any]:
    return list(page.get("vega_lite_chart"))


@pytest.mark.parametrize("model", ["maths", "plain"])
def test_a_continuation_is_scored(
    model: str, open_page: Callable[..., AppTest], fleet: Serving
) -> None:
    """The sum is the server's own log-likelihood, for a prefix-LM and for a causal one."""
    continuation = " = 632 <b>"
    page = open_page(inside_prompt=SUM, inside_continuation=continuation, model=model)
    click(page, "Score")
    wait_for(page, lambda: "Log-likelihood" in metrics(page), "it is scored")
    scores = post(fleet, "/loglikelihood", model=model, prompts=[SUM], continuations=[continuation])
    assert metrics(page)["Log-likelihood"] == f"{scores['ll'][0]:.3f} nats"
    assert metrics(page)["Tokens"] == str(scores["num_tokens"][0])

    prompt, scored, _legend = htmls(page)
    assert text_of(scored) == continuation
    assert "<b>" not in scored
    is_given = [said == "given, not predicted" for said in titles(prompt)]
    # A causal model predicts all tokens of a prompt but the first.
    assert all(is_given) if model == "maths" else is_given.count(True) == 1


def test_depths_are_compared(open_page: Callable[..., AppTest], fleet: Serving) -> None:
    page = open_page(inside_prompt="Compute: 3 + 4", inside_depths="1x1, low, high")
    click(page, "Generate")
    wait_for(page, lambda: "Speed" in metrics(page), "the answer is there")
    click(page, "Score at these depths")
    wait_for(page, lambda: "high (2x2)" in metrics(page), "it is scored at all depths")

    prompt = post(fleet, "/tokenize", prompt="Compute: 3 + 4")["tokens"]
    text = "3 + 4 = 7\n\\boxed{7}"
    answer = post(fleet, "/tokenize", prompt=text, add_special_tokens=False)["tokens"]
    table = page.dataframe[1].value
    for label, cycles in (("1x1", "1x1"), ("low (2x1)", "2x1"), ("high (2x2)", "2x2")):
        read = {"prompt": prompt + answer, "max_tokens": 0, "echo": True, "logprobs": 1}
        choice = post(fleet, "/v1/completions", **read, cycles=cycles)["choices"][0]
        expected = choice["logprobs"]["token_logprobs"][len(prompt) :]
        assert table[label].tolist() == pytest.approx(expected, abs=1e-4)

    # A model that has one depth is told from the others in the words of the server.
    page = open_page(inside_prompt="a", inside_continuation="b", model="plain")
    click(page, "Score at these depths")
    wait_for(page, lambda: page.error, "it is refused")
    assert "this model has one depth" in page.error[0].value


def test_segments_of_a_puzzle_are_drawn(open_page: Callable[..., AppTest], fleet: Serving) -> None:
    page = open_page(inside_puzzle=SUDOKU, inside_samples="2")
    click(page, "Run all segments")
    wait_for(page, lambda: "Response time" in metrics(page), "all segments are there")
    assert [title.value for title in page.subheader][-2:] == ["Sample 0", "Sample 1"]

    table = page.dataframe[0].value
    assert table["segment"].tolist() == list(range(1, 17))
    solved = post(fleet, "/v1/puzzles/solve", model="sudoku", grid=SUDOKU, halt="max")
    [solution] = solved["solutions"]
    sure = 1 / (1 + math.exp(-table["q_halt"].tolist()[-1]))
    assert sure == pytest.approx(solution["confidence"], abs=1e-4)
    # No cell changes any more once the puzzle is solved.
    assert table["changed cells"].tolist()[0] == SUDOKU.count(".")
    assert table["changed cells"].tolist()[-1] == 0


async def test_a_person_looks_inside_on_a_phone(fleet: Serving, app_port: int) -> None:
    url = f"http://127.0.0.1:{app_port}"
    link = "/inside?inside_prompt=Compute:+3+%2B+4"
    tolerated = (*TOLERATED, *TOLERATED_OF_CHARTS)
    async with opened(url, PHONE, path=link, tolerated=tolerated) as page:
        await page.get_by_role("button", name="Generate", exact=True).click(timeout=30_000)
        await expect(page.get_by_text("tokens/s")).to_be_visible(timeout=30_000)
        token = page.locator("span[title*='nats']").filter(has_text="boxed")
        await expect(token).to_be_visible()
        await expect(token).to_have_attribute("title", re.compile("'boxed' 100 %"))
        await expect(page.get_by_text("90 % and more")).to_be_visible()
        await expect(page.get_by_test_id("stVegaLiteChart")).to_be_visible()
        await expect_no_overflow(page)

        await page.get_by_role("tab", name="Puzzle").click()
        await page.get_by_role("button", name="Run all segments").click()
        await expect(page.get_by_text("Response time").last).to_be_visible(timeout=30_000)
        await expect_no_overflow(page)
