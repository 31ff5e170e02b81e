"""The page *Compare* on a real fleet, by itself and in a browser."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.async_api import expect
from streamlit.testing.v1 import AppTest

from shared.shipped import REPO_ROOT
from tests.fixtures.browser import DESKTOP, PHONE, opened, overflow_of
from tests.fixtures.e2e.app_pages import TOLERATED, click, htmls, metrics, page_of, wait_for
from tests.fixtures.e2e.serving import Serving, serving
from tests.fixtures.redis_server import free_port

SUM = "Compute: 347 + 285"
CODE = "Write a function that adds two numbers."


@pytest.fixture(scope="module")
def app_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def fleet(app_port: int) -> Iterator[Serving]:
    models = REPO_ROOT / "models"
    flags = ["--threads", "1", "--ui", "--ui-port", str(app_port)]
    flags += ["--model", f"maths={models / 'hrm-text-math'}"]
    flags += ["--model", f"brain={models / 'actv1-math'}", "--default-model", "maths"]
    with serving(*flags) as running:
        yield running


@pytest.fixture
def open_page(fleet: Serving, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Return a function that opens a page with the parameters of a link."""
    monkeypatch.setenv("API_URL", fleet.url)
    monkeypatch.delenv("API_KEY", raising=False)
    return page_of


def completion(fleet: Serving, model: str, prompt: str, **sampling: object) -> str:
    """Return an answer by the server itself."""
    body = {"model": model, "prompts": [prompt], "max_tokens": 60, **sampling}
    answer = httpx.post(f"{fleet.url}/generate", json=body, timeout=60).json()
    text: str = answer["completions"][0]
    return text


def test_models_answer_side_by_side(open_page: Callable[..., AppTest], fleet: Serving) -> None:
    """Two models with one seed give what each gives alone, and the words that differ are marked."""
    page = open_page(
        "compare",
        compare_prompts=SUM,
        compare_temperature="0.7",
        compare_seed="7",
        compare_max_tokens="60",
    )
    page.multiselect(key="compare_models").set_value(["maths", "brain"]).run()
    click(page, "Compare")
    wait_for(page, lambda: len(page.subheader) == 2 and "Speed" in metrics(page), "they are there")
    wait_for(page, lambda: "<ins" in htmls(page)[1], "the differences are marked")

    first, second = htmls(page)
    assert without_marks(first) == completion(fleet, "maths", SUM, temperature=0.7, seed=7)
    assert without_marks(second) == completion(fleet, "brain", SUM, temperature=0.7, seed=7)
