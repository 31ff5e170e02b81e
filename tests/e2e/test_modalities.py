"""Models of images have processes of their own, where their number is set."""

import base64
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.fixtures.e2e.serving import Serving, serving
from tests.fixtures.one_shots import write_one_shot
from tests.fixtures.pictures import encoded, picture
from tests.fixtures.polling import wait_until

KEY = {"Authorization": "Bearer boss"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    looker = tmp_path_factory.mktemp("looker")
    write_one_shot("image-classification", looker)
    flags = ["--model", "parrot=echo", "--model", f"looker={looker}", "--image-workers", "2"]
    flags += ["--admin-keys", "boss"]
    with serving(*flags, "--device", "cpu", "--request-timeout-s", "60") as running:
        yield running


def speak(fleet: Serving) -> list[str]:
    body = {"prompts": ["ab"], "max_tokens": 4, "model": "parrot"}
    answer = httpx.post(f"{fleet.url}/generate", json=body, headers=KEY, timeout=20)
    assert answer.status_code == 200, answer.text
    completions: list[str] = answer.json()["completions"]
    return completions


def look(fleet: Serving) -> httpx.Response:
    body = {
        "task": "image-classification",
        "model": "looker",
        "inputs": base64.b64encode(encoded(picture())).decode(),
    }
    return httpx.post(f"{fleet.url}/api/inference", json=body, headers=KEY, timeout=60)


def workers_of(fleet: Serving) -> list[dict[str, Any]]:
    answer = httpx.get(f"{fleet.url}/v1/fleet", headers=KEY, timeout=60)
    workers: list[dict[str, Any]] = answer.json()["workers"]
    return workers


def num_ready(fleet: Serving) -> int:
    return sum(worker["state"] == "ready" for worker in workers_of(fleet))


def test_each_process_serves_the_models_of_its_modality(fleet: Serving) -> None:
    """D76: two workers have the model of images, and the one of text has the other."""
    wait_until(lambda: num_ready(fleet) == 3, "three workers are ready")
    served = []
    for worker in workers_of(fleet):
        served.append((worker["pool"], [model["id"] for model in worker["models"]]))
    assert sorted(served) == [("image", ["looker"]), ("image", ["looker"]), ("text", ["parrot"])]


def test_images_that_take_for_ever_hold_up_no_text(fleet: Serving) -> None:
    """Text is answered while all processes of images stand still, and images once they go on."""
    wait_until(lambda: num_ready(fleet) == 3, "three workers are ready")
    # The front may have read half a second ago which models there are.
    wait_until(lambda: look(fleet).status_code == 200, "the front knows the model of images")
    image_pids = [int(w["id"].split("-")[-2]) for w in workers_of(fleet) if w["pool"] == "image"]
    assert len(image_pids) == 2
    for pid in image_pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as threads:
            looking = threads.submit(look, fleet)
            for _ in range(5):
                assert speak(fleet) == ["abab"]
            assert not looking.done()
            for pid in image_pids:
                os.kill(pid, signal.SIGCONT)
            answer = looking.result()
    finally:
        for pid in image_pids:
            os.kill(pid, signal.SIGCONT)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["result"]["labels"]) == 3
