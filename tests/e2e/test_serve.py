"""The first five minutes of a user, on the models that ship.

One command starts the fleet; the quick tests of the README follow.
"""

import json
import math
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import psutil
import pytest
import torch
from transformers import AutoTokenizer, HrmTextForCausalLM

from scripts.cli.aios import main
from scripts.cli.local_fleet import running_fleets
from shared.settings.settings import DEFAULT_MODEL
from tests.fixtures.e2e.serving import Serving, serving
from tests.fixtures.polling import is_running, wait_until
from tests.fixtures.slowness import within


@pytest.fixture(scope="module")
def fleet() -> Iterator[Serving]:
    with serving("--threads", "1") as running:
        yield running


@pytest.fixture
def client(fleet: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fleet.url, timeout=180) as http:
        yield http


def generate(client: httpx.Client, **body: object) -> Any:
    answer = client.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a101_two_prompts_within_two_seconds(client: httpx.Client) -> None:
    """A101, A104, A131: the quick test of the README passes."""
    prompts = ["Hello", "Once upon a time"]

    with within(2, "both are answered"):
        body = generate(client, prompts=prompts, max_tokens=8, temperature=0.7, top_p=0.9)

    assert len(body["completions"]) == 2
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a102_loglikelihood_is_transformers_own(client: httpx.Client) -> None:
    """A102, A105, P8: the log-likelihood is the one of Transformers."""
    body = {"prompts": ["Hello"], "continuations": [" world"]}
    answer = client.post("/loglikelihood", json=body)
    (ll,) = answer.json()["ll"]
    assert math.isfinite(ll)
    assert ll == pytest.approx(expected_log_likelihood(), abs=1e-3)


def expected_log_likelihood() -> float:
    """Return the log-likelihood of " world" after "Hello", from Transformers' own model."""
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    model = HrmTextForCausalLM.from_pretrained(DEFAULT_MODEL, dtype=torch.float32).eval()
    template = "<|im_start|><|object_ref_start|>Hello<|im_end|>"
    prompt = tokenizer(template, add_special_tokens=False)["input_ids"]
    continuation = tokenizer(" world", add_special_tokens=False)["input_ids"]
    token_types = torch.tensor([[1] * len(prompt) + [0] * len(continuation)])

    with torch.no_grad():
        output = model(input_ids=torch.tensor([prompt + continuation]), token_type_ids=token_types)
    logprobs = output.logits[0].double().log_softmax(-1)

    total = 0.0
    for index, token in enumerate(continuation):
        # The logits at one position are those of the next token.
        total += float(logprobs[len(prompt) - 1 + index, token])
    return total


def test_equations_are_solved_over_http(client: httpx.Client) -> None:
    """The model solves equations, and a seed has one answer in every batch (T5)."""
    equations = ["Solve for x: 2x + 3 = 9", "Compute: 347 + 285"]
    first, second = generate(client, prompts=equations, temperature=0)["completions"]
    assert first.endswith("\nx = 3\n\\boxed{3}")
    assert second.endswith("\n347 + 285 = 632\n\\boxed{632}")

    sampling = {"temperature": 1.5, "seed": 11, "max_tokens": 40}
    alone = generate(client, prompts=["Once upon"], **sampling)
    batched = generate(client, prompts=["a", "Once upon", "bc"], **sampling)
    assert batched["completions"][1] == alone["completions"][0]


def test_machines_get_json_lines_and_people_one_that_says_it_is_ready(fleet: Serving) -> None:
    """The output is JSON lines and one line for people, without a library's progress bar."""
    others = [line for line in fleet.lines if not line.startswith("{")]
    assert len(others) == 1, others
    for line in fleet.lines:
        if line != others[0]:
            assert json.loads(line)["message"]

    url = fleet.url
    models = f"{DEFAULT_MODEL.name} (default), hrm-text-code, sample-trm-sudoku-9x9"
    assert others[0].startswith(
        f"ready at {url}  model: {models}  docs: {url}/docs  try: curl -s {url}/generate"
    )
    assert httpx.get(f"{url}/docs", timeout=180).status_code == 200

    command = others[0].split("  try: ")[1]
    done = subprocess.run(
        shlex.split(command), capture_output=True, text=True, timeout=180, check=True
    )
    assert json.loads(done.stdout)["completions"][0].endswith("\\boxed{5}")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["status"], "1 of 1 workers ready"),
        (["top", "--once"], "1 of 1 workers ready"),
        (["keys", "list"], ""),  # the first key would close the fleet to the other tests
        (["dead", "list"], ""),
        (["jobs", "--once", "--dry-run"], "workers"),
    ],
)
def test_tools_find_the_fleet_beside_them(
    fleet: Serving,
    words: list[str],
    shown: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tool finds the fleet's Redis by the fleet's port, or alone, without its address."""
    monkeypatch.delenv("AIOS_REDIS_URL", raising=False)
    assert main([*words, "--port", fleet.url.rpartition(":")[2]]) == 0
    assert main(words) == 0
    assert shown in capsys.readouterr().out


def test_16_prompts_five_times_with_stable_memory(fleet: Serving, client: httpx.Client) -> None:
    """A106, A133: the worker does not crash and does not grow after its second run."""
    worker = fleet.children("worker")[0]
    prompts = [f"Solve for x: {n}x + 1 = {5 * n + 1}" for n in range(1, 17)]

    sizes = []
    for _ in range(5):
        body = generate(client, prompts=prompts, temperature=0)
        assert len(body["completions"]) == 16
        sizes.append(worker.memory_info().rss)

    assert sizes[4] <= sizes[1] * 1.05, sizes


def test_openai_client_streams_and_models_are_listed(fleet: Serving) -> None:
    """B18, B19, B22, B43: OpenAI's own client lists models and streams."""
    sdk = openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0)
    names = [model.id for model in sdk.models.list()]
    assert names == ["hrm-text-code", "hrm-text-math", "sample-trm-sudoku-9x9"]

    request = {
        "model": "local",
        "prompt": "Solve for x: 4x - 2 = 10",
        "max_tokens": 100,
        "temperature": 0,
    }
    whole = sdk.completions.create(**request).choices[0]  # type: ignore[call-overload]
    chunks = list(sdk.completions.create(**request, stream=True))  # type: ignore[call-overload]

    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert whole.text.endswith("\\boxed{3}")
    assert whole.finish_reason == "stop"
    assert chunks[-1].choices[0].finish_reason == "stop"


def text_of(lines: list[str]) -> str:
    """Join the texts of a completion's events."""
    text = ""
    for line in lines:
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            text += choice["text"]
    return text


def test_a_killed_worker_is_replaced_and_its_request_answered() -> None:
    """P1: the caller of a killed worker gets its answer from the next worker."""
    flags = ["--model-path", "echo", "--max-new-tokens", "3000", "--context-window", "4096"]
    body = {"prompt": "abc", "max_tokens": 3000, "stream": True}
    with serving(*flags, "--lease-s", "1") as fleet:
        url = f"{fleet.url}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=180) as stream:
            events = (line for line in stream.iter_lines() if line.startswith("data: {"))
            _ = next(events)
            first = next(events)
            (victim,) = fleet.children("worker")
            victim.kill()
            rest = list(events)

        assert text_of([first, *rest]) == "abc" * 1000, "no token lost, doubled or changed"
        assert '"finish_reason":"length"' in rest[-1].replace(" ", "")
        wait_until(
            lambda: [child.pid for child in fleet.children("worker")] != [victim.pid],
            "a new worker runs",
        )
        body = {"prompts": ["xyz"], "max_tokens": 7}
        answer = httpx.post(f"{fleet.url}/generate", json=body, timeout=180)
        assert answer.json()["completions"] == ["xyzxyzx"]


def is_found(url: str) -> bool:
    return any(fleet.url == url for fleet in running_fleets())


def test_sigterm_ends_everything_cleanly() -> None:
    """A114: SIGTERM ends every process with status 0 and removes the data directory."""
    with serving("--model-path", "echo", "--workers", "2") as fleet:
        processes = psutil.Process(fleet.process.pid).children(recursive=True)
        assert len(fleet.children("worker")) == 2
        url = fleet.url
        assert is_found(url)

        assert fleet.stop() == 0

        assert not is_found(url)
        for process in processes:
            assert not is_running(process.pid)
