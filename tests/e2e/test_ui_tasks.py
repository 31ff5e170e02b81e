"""The page *Tasks* of the web app on a real fleet: every kind of input and of result."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from playwright.async_api import Page, expect
from streamlit.testing.v1 import AppTest

from shared.shipped import shipped
from tests.e2e.test_plugin_folder import MANIFEST, MIRROR
from tests.fixtures.browser import DESKTOP, PHONE, expect_no_overflow, opened
from tests.fixtures.e2e.app_pages import TOLERATED, click, metrics, page_of, wait_for
from tests.fixtures.e2e.serving import Serving, serving
from tests.fixtures.one_shots import write_one_shot
from tests.fixtures.pictures import encoded, picture
from tests.fixtures.redis_server import free_port

ONE_SHOTS = {
    "detector": "object-detection",
    "segmenter": "image-segmentation",
    "oracle": "time-series-forecasting",
    "speaker": "text-to-speech",
}
PNG = encoded(picture(120, 90))


@pytest.fixture(scope="module")
def app_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, app_port: int) -> Iterator[Serving]:
    """Run a fleet with small networks and a plugin, and the app beside it."""
    folder = tmp_path_factory.mktemp("tasks")
    plugin = folder / "plugins" / "aios_mirror"
    shutil.copytree(MIRROR, plugin)
    (plugin / "plugin.toml").write_text(MANIFEST)
    models: list[dict[str, Any]] = [
        {"id": "maths", "path": str(shipped("models/hrm-text-math"))},
        {"id": "classifier", "path": "echo"},
        {"id": "steps", "path": "echo-task"},
        {"id": "mirror", "path": str(folder), "runner": "mirror", "options": {"ends": "!"}},
    ]
    for name, task in ONE_SHOTS.items():
        write_one_shot(task, folder / name)
        entry = {"id": name, "path": str(folder / name), "runner": "one-shot"}
        models.append(entry | {"options": {"task": task}})
    config = folder / "fleet.yaml"
    config.write_text(yaml.safe_dump({"serve": {"hrm": {"models": models}}}))
    flags = ["--config", str(config), "--default-model", "maths", "--threads", "1"]
    flags += ["--ui", "--ui-port", str(app_port)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIOS_PLUGINS", str(folder / "plugins"))
        with serving(*flags) as running:
            yield running


@pytest.fixture
def open_page(fleet: Serving, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Return a function that opens the page with the parameters of a link."""
    monkeypatch.setenv("API_URL", fleet.url)
    monkeypatch.delenv("API_KEY", raising=False)

    def open_with(**parameters: str) -> AppTest:
        return page_of("tasks", **parameters)

    return open_with


def answered(page: AppTest) -> dict[str, Any]:
    """Run the task, and return the answer as the page has it in JSON."""
    click(page, "Run")
    wait_for(page, lambda: page.error or page.json, "the answer is there")
    assert not page.error
    answer: dict[str, Any] = json.loads(page.json[0].value)
    return answer


def asked(fleet: Serving, body: dict[str, Any]) -> Any:
    """Return the result of the same task, asked for without the app."""
    answer = httpx.post(f"{fleet.url}/api/inference", json=body, timeout=60)
    assert answer.is_success, answer.text
    return answer.json()["result"]


def test_only_tasks_that_a_model_does_are_offered(open_page: Callable[..., AppTest]) -> None:
    page = open_page()
    offered = page.selectbox(key="task").options
    assert {"text-generation", "object-detection", "echo_task", "mirror"} <= set(offered)
    assert "text-to-video" not in offered
    page.toggle(key="all_tasks").set_value(True).run()
    assert "text-to-video" in page.selectbox(key="task").options

    page = open_page(task="text-to-video")
    assert page.selectbox(key="task").value == "text-to-video"
    [run] = [button for button in page.button if button.label == "Run"]
    assert run.disabled
    assert "text-to-video" in page.info[0].value


def test_texts_and_scores(open_page: Callable[..., AppTest], fleet: Serving) -> None:
    page = open_page(task="text-generation", **{"text-generation.inputs": "Compute: 12 + 30"})
    page.slider(key="text-generation.options.temperature").set_value(0.0)
    body = {"task": "text-generation", "inputs": "Compute: 12 + 30", "options": {"temperature": 0}}
    result = asked(fleet, body)
    assert answered(page)["result"] == result
    assert page.code[0].value == result["text"]
    assert metrics(page)["Finish reason"] == result["finish_reason"]

    page = open_page(task="text-classification")
    labels = answered(page)["result"]["labels"]
    body = {"task": "text-classification", "inputs": "I like it.", "model": "classifier"}
    assert labels == asked(fleet, body)["labels"]
    bars = [(bar.proto.value, bar.proto.text) for bar in page.get("progress")]
    assert len(bars) == len(labels)
    assert bars[0] == (
        round(100 * labels[0]["score"]),
        f"{labels[0]['label']} {labels[0]['score']:.3f}",
    )


def test_what_is_found_in_a_picture(open_page: Callable[..., AppTest], fleet: Serving) -> None:
    """The picture is uploaded, and the findings are drawn into it."""
    upload = httpx.post(
        f"{fleet.url}/v1/files",
        files={"file": ("a.png", PNG)},
        data={"purpose": "user_data"},
        timeout=60,
    )
    file_id = upload.json()["id"]
    page = open_page(task="object-detection")
    page.file_uploader[0].set_value(("a.png", PNG, "image/png"))
    page.slider(key="object-detection.options.threshold").set_value(0.1)
    page.run()
    objects = answered(page)["result"]["objects"]
    body = {
        "task": "object-detection",
        "inputs": file_id,
        "model": "detector",
        "options": {"threshold": 0.1},
    }
    assert objects == asked(fleet, body)["objects"]
    assert objects
    assert len(page.image) == 2
    assert list(page.dataframe[0].value["label"]) == [found["label"] for found in objects]

    # A file that the fleet has is named by a link.
    page = open_page(task="image-segmentation", **{"image-segmentation.inputs.id": file_id})
    segments = answered(page)["result"]["segments"]
    assert list(page.dataframe[0].value["area"]) == [found["area"] for found in segments]
    assert len(page.image) == 1


def test_series_and_sounds(open_page: Callable[..., AppTest], fleet: Serving) -> None:
    page = open_page(task="time-series-forecasting")
    page.text_area(key="time-series-forecasting.inputs").set_value("1 2 3 4 1 2 3 4 1 2 3 4")
    page.number_input(key="time-series-forecasting.options.horizon").set_value(4)
    forecast = answered(page)["result"]["forecast"]
    body = {
        "task": "time-series-forecasting",
        "inputs": [1, 2, 3, 4] * 3,
        "model": "oracle",
        "options": {"horizon": 4},
    }
    assert forecast == asked(fleet, body)["forecast"]
    assert page.get("vega_lite_chart")
    page.text_area(key="time-series-forecasting.inputs").set_value("1 two")
    click(page, "Run")
    assert [error.value for error in page.error] == ["'two' is not a number."]

    page = open_page(task="text-to-speech")
    audio = answered(page)["result"]["audio"]
    assert audio["media_type"] == "audio/wav"
    assert page.get("audio")
    [button] = page.get("download_button")
    assert button.label == f"Download ({audio['bytes']:,} bytes)"


def test_a_task_of_a_plugin_has_a_form(open_page: Callable[..., AppTest]) -> None:
    """There is nothing about it in the app."""
    page = open_page(task="mirror")
    page.text_area(key="mirror.texts").set_value("abc\nde f")
    page.checkbox(key="mirror.by_word").set_value(True)
    assert answered(page) == {"texts": ["abc!", "f de!"]}
    assert [code.value for code in page.code] == ["abc!", "f de!"]


def test_a_task_tells_how_far_it_is_and_is_stopped(open_page: Callable[..., AppTest]) -> None:
    page = open_page(task="echo_task")
    page.number_input(key="echo_task.steps").set_value(1000)
    page.number_input(key="echo_task.step_ms").set_value(1000)
    click(page, "Run")
    wait_for(page, lambda: page.code or page.get("progress"), "it is under way")
    click(page, "Stop")
    wait_for(page, lambda: "Stopped." in [text.value for text in page.caption], "it is stopped")


async def test_a_person_has_a_picture_looked_at(
    fleet: Serving, app_port: int, tmp_path: Path
) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(PNG)
    url = f"http://127.0.0.1:{app_port}"
    async with opened(
        f"{url}/tasks?task=object-detection", DESKTOP, tolerated=(url, *TOLERATED)
    ) as page:
        await page.locator("input[type=file]").set_input_files(file)
        await expect(page.get_by_role("img", name="The picture a.png")).to_be_visible(
            timeout=30_000
        )
        await _run(page)
        marked = page.get_by_role("img", name="The picture, marked")
        await expect(marked).to_be_visible()
        await page.set_viewport_size({"width": PHONE, "height": 800})
        await expect(marked).to_be_visible()
        await expect_no_overflow(page)


async def _run(page: Page) -> None:
    await page.get_by_role("button", name="Run", exact=True).click()
    await expect(page.get_by_text("Response time")).to_be_visible()
