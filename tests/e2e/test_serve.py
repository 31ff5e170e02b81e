"""The first five minutes of a user: one command, then the quick tests of the README, on the shipped
sample model."""

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
from shared.settings.settings import SAMPLE_MODEL
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
    """A101, A104, A131: the quick test of the README."""
    with within(2, "both are answered"):
        body = generate(
            client, prompts=["Hello", "Once upon a time"], max_tokens=8, temperature=0.7, top_p=0.9
        )
    assert len(body["completions"]) == 2
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a102_loglikelihood_is_transformers_own(client: httpx.Client) -> None:
    """A102, A105, P8: one finite number, and the right one."""
    answer = client.post("/loglikelihood", json={"prompts": ["Hello"], "continuations": [" world"]})
    (ll,) = answer.json()["ll"]
    assert math.isfinite(ll)
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE_MODEL)
    model = HrmTextForCausalLM.from_pretrained(SAMPLE_MODEL).eval()
    prompt = tokenizer("<|im_start|><|object_ref_start|>Hello<|im_end|>", add_special_tokens=False)[
        "input_ids"
    ]
    tail = tokenizer(" world", add_special_tokens=False)["input_ids"]
    types = torch.tensor([[1] * len(prompt) + [0] * len(tail)])
    with torch.no_grad():
        logits = (
            model(input_ids=torch.tensor([prompt + tail]), token_type_ids=types).logits[0].double()
        )
    shares = logits.log_softmax(-1)
    expected = sum(float(shares[len(prompt) - 1 + i, token]) for i, token in enumerate(tail))
    assert ll == pytest.approx(expected, abs=1e-3)


def test_equations_are_solved_over_http(client: httpx.Client) -> None:
    """The model does something real, and a seed says the same whoever shares the batch (T5)."""
    body = generate(
        client, prompts=["Solve for x: 2x + 3 = 9", "Compute: 347 + 285"], temperature=0
    )
    assert [text.rsplit("\n")[-1] for text in body["completions"]] == ["x = 3", "= 632"]
    alone = generate(client, prompts=["Once upon"], temperature=1.5, seed=11, max_tokens=40)[
        "completions"
    ]
    crowd = generate(
        client, prompts=["a", "Once upon", "bc"], temperature=1.5, seed=11, max_tokens=40
    )["completions"]
    assert crowd[1] == alone[0]


def test_machines_get_json_lines_and_people_one_that_says_it_is_ready(fleet: Serving) -> None:
    """No progress bar of a library stands between them."""
    others = [line for line in fleet.lines if not line.startswith("{")]
    assert len(others) == 1, others
    url = fleet.url
    model = SAMPLE_MODEL.name
    assert others[0].startswith(
        f"ready at {url}  model: {model}  docs: {url}/docs  try: curl -s {url}/generate"
    )
    assert httpx.get(f"{url}/docs", timeout=180).status_code == 200
    assert all(json.loads(line)["message"] for line in fleet.lines if line != others[0])
    command = others[0].split("  try: ")[1]
    done = subprocess.run(
        shlex.split(command), capture_output=True, text=True, timeout=180, check=True
    )
    assert json.loads(done.stdout)["completions"][0].endswith("x = 5")


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
    """Nobody knows the address and the password of its Redis."""
    monkeypatch.delenv("AIOS_REDIS_URL", raising=False)
    assert main([*words, "--port", fleet.url.rpartition(":")[2]]) == 0
    assert main(words) == 0
    assert shown in capsys.readouterr().out


def test_16_prompts_five_times_with_stable_memory(fleet: Serving, client: httpx.Client) -> None:
    """A106, A133: no crash, and the worker is not larger after run five than after run two."""
    worker = fleet.children("worker")[0]
    sizes = []
    for _ in range(5):
        body = generate(
            client,
            prompts=[f"Solve for x: {n}x + 1 = {5 * n + 1}" for n in range(1, 17)],
            temperature=0,
        )
        assert len(body["completions"]) == 16
        sizes.append(worker.memory_info().rss)
    assert sizes[4] <= sizes[1] * 1.05, sizes


def test_openai_client_streams_and_models_are_listed(fleet: Serving) -> None:
    """B18, B19, B22, B43 with OpenAI's own client."""
    sdk = openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in sdk.models.list()] == [SAMPLE_MODEL.name]
    asked = {
        "model": "local",
        "prompt": "Solve for x: 4x - 2 = 10",
        "max_tokens": 100,
        "temperature": 0,
    }
    whole = sdk.completions.create(**asked)  # type: ignore[call-overload]
    chunks = list(sdk.completions.create(**asked, stream=True))  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert whole.choices[0].text.endswith("x = 3")
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "stop"
    assert len(chunks) > 10, "one chunk for each token, or nearly"


def test_a_killed_worker_is_replaced_and_its_request_answered() -> None:
    """Supervision, and P1 in the small: the caller of a killed worker gets its answer from the next
    one."""
    with serving(
        "--model-path",
        "echo",
        "--max-new-tokens",
        "3000",
        "--context-window",
        "4096",
        "--lease-s",
        "1",
    ) as fleet:
        with httpx.stream(
            "POST",
            f"{fleet.url}/v1/completions",
            json={"prompt": "abc", "max_tokens": 3000, "stream": True},
            timeout=180,
        ) as stream:
            events = (line for line in stream.iter_lines() if line.startswith("data: {"))
            _ = next(events)
            first = next(events)
            (victim,) = fleet.children("worker")
            victim.kill()
            rest = list(events)
        said = "".join(
            choice["text"] for line in [first, *rest] for choice in json.loads(line[6:])["choices"]
        )
        assert said == "abc" * 1000, "no token lost, doubled or changed"
        wait_until(
            lambda: [child.pid for child in fleet.children("worker")] != [victim.pid],
            "a new worker runs",
        )
        assert '"finish_reason":"length"' in rest[-1].replace(" ", "")
        body = httpx.post(
            f"{fleet.url}/generate", json={"prompts": ["xyz"], "max_tokens": 7}, timeout=180
        ).json()
        assert body["completions"] == ["xyzxyzx"]


def test_sigterm_ends_everything_cleanly() -> None:
    """A114: exit 0, no process and no data directory left behind."""
    with serving("--model-path", "echo", "--workers", "2") as fleet:
        family = psutil.Process(fleet.process.pid).children(recursive=True)
        assert len(fleet.children("worker")) == 2
        assert fleet.url in [found.url for found in running_fleets()]
        url = fleet.url
        assert fleet.stop() == 0
        assert url not in [found.url for found in running_fleets()]
        assert not [child for child in family if is_running(child.pid)]
