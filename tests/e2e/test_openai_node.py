"""OpenAI's own Node client against a running fleet with the default model.

`scripts/test.sh` installs the client.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.settings.settings import DEFAULT_MODEL
from tests.fixtures.e2e.serving import serving
from tests.fixtures.polling import wait_until

FOLDER = Path(__file__).parent / "node"
USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


@pytest.mark.skipif(
    not (FOLDER / "node_modules").exists(), reason="needs `npm ci` in tests/e2e/node, and Node 20"
)
def test_models_completions_chats_streams_and_errors() -> None:
    flags = ["--model", f"sample={DEFAULT_MODEL}", "--model", "echo=echo"]
    flags += ["--default-model", "sample", "--threads", "1", "--max-new-tokens", "400"]
    with serving(*flags) as fleet:
        command = ["node", str(FOLDER / "openai_sdk.mjs"), fleet.url]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=180)
        report = json.loads(done.stdout)
        job = f"{fleet.url}/v1/jobs/{report['left'].removeprefix('cmpl-')}"
        wait_until(
            lambda: httpx.get(job, timeout=60).json()["state"] not in ("queued", "running"),
            "the stream left ends",
        )
        assert httpx.get(job, timeout=60).json()["state"] == "cancelled"
    check(report)


def check(report: dict[str, Any]) -> None:
    assert report["models"] == ["echo", "sample"]
    [text, other] = report["texts"]
    assert text.endswith("\\boxed{3}")
    assert other == text
    assert report["streamed"] == text
    assert report["chat"]["content"] == text
    assert report["chat"]["role"] == "assistant"

    assert report["completion_tokens"] == 2 * report["num_logprobs"]
    assert report["completion_tokens"] == 2 * report["usage"]["completion_tokens"]
    assert report["same_usage"]
    for name in USAGE:
        assert report["usage"][name] > 0

    assert report["dimensions"] == [192, 192]
    assert report["wrong"] == {
        "name": "BadRequestError",
        "status": 400,
        "code": "invalid_request",
        "param": "n",
    }
    assert report["unknown"] == {
        "name": "NotFoundError",
        "status": 404,
        "code": "model_not_found",
        "param": "model",
    }
