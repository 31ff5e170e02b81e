"""OpenAI's own Node client against a running fleet with the sample model. `scripts/test.sh`
installs the client."""

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.settings.settings import SAMPLE_MODEL
from tests.fixtures.e2e.serving import serving
from tests.fixtures.polling import wait_until

FOLDER = Path(__file__).parent / "node"
USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


@pytest.mark.skipif(
    not (FOLDER / "node_modules").exists(), reason="needs `npm ci` in tests/e2e/node, and Node 20"
)
def test_models_completions_chats_streams_and_errors() -> None:
    models = (
        "--model",
        f"sample={SAMPLE_MODEL}",
        "--model",
        "echo=echo",
        "--default-model",
        "sample",
    )
    with serving(*models, "--threads", "1", "--max-new-tokens", "400") as fleet:
        command = ["node", str(FOLDER / "openai_sdk.mjs"), fleet.url]
        told = json.loads(
            subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, timeout=180
            ).stdout
        )
        job = f"{fleet.url}/v1/jobs/{told['left'].removeprefix('cmpl-')}"
        wait_until(
            lambda: httpx.get(job).json()["state"] not in ("queued", "running"),
            "the stream left ends",
        )
        assert httpx.get(job).json()["state"] == "cancelled"
    check(told)


def check(told: dict[str, Any]) -> None:
    assert told["models"] == ["echo", "sample"]
    [text, other] = told["texts"]
    assert text == other == told["chat"]["content"] == told["streamed"]
    assert text.endswith("x = 3") and told["chat"]["role"] == "assistant"
    assert (
        told["completion_tokens"]
        == 2 * told["num_logprobs"]
        == 2 * told["usage"]["completion_tokens"]
    )
    assert told["same_usage"] and all(told["usage"][name] > 0 for name in USAGE)
    assert told["dimensions"] == [128, 128]
    assert told["wrong"] == {
        "name": "BadRequestError",
        "status": 400,
        "code": "invalid_request",
        "param": "n",
    }
    assert told["unknown"] == {
        "name": "NotFoundError",
        "status": 404,
        "code": "model_not_found",
        "param": "model",
    }
