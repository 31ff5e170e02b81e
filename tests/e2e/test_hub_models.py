"""A model of the hub, served by a fleet and in this process, from a stand-in for the hub."""

from pathlib import Path

import httpx
import pytest

import worker.__main__ as process
from shared.settings.settings import Settings, SettingsError
from tests.fixtures.e2e.serving import serving
from tests.fixtures.hub import asked_here, stand_in_hub
from tests.fixtures.tiny_hrm_text import PROMPTS, write_tiny
from worker.llm import LLM
from worker.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12)


def answers(model: str | Path) -> list[str]:
    with LLM(model, device="cpu", threads=1) as llm:
        return [output.outputs[0].text for output in llm.generate(PROMPTS, GREEDY)]


def test_it_answers_as_from_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One download for a whole fleet, which shows the commit; later starts need no hub."""
    net = tmp_path / "net"
    write_tiny(net)
    (net / "modeling_net.py").write_text("raise SystemExit")
    (net / "pytorch_model.bin").write_bytes(b"no weights")
    expected = answers(net)

    home = tmp_path / "home"
    monkeypatch.setenv("HF_HOME", str(home))
    with stand_in_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        commit = hub.add("org/tiny", net)
        with serving("--model-path", "org/tiny", "--threads", "1") as fleet:
            body = {"prompts": PROMPTS, "max_tokens": 12, "temperature": 0}
            answer = httpx.post(f"{fleet.url}/generate", json=body, timeout=60)
            [model] = httpx.get(f"{fleet.url}/v1/models", timeout=60).json()["data"]
            asked = hub.requests.count("GET /api/models/org/tiny")
            weights = [request for request in hub.requests if "GET" in request]
            said = "".join(fleet.lines)

    assert answer.json()["completions"] == expected
    assert model["id"] == "tiny"
    assert model["description"].endswith(f"; org/tiny@{commit}")
    assert asked == 1
    assert sum(request.endswith("model.safetensors") for request in weights) == 1
    assert hub.fetched().isdisjoint({"modeling_net.py", "pytorch_model.bin"})
    assert said.count("model of the hub") == 1
    assert "HTTP Request" not in said

    # The stand-in is gone.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # The threads of this process stay as they are.
    monkeypatch.setattr(process, "prepare_process", lambda _: None)
    with asked_here(hub.url, home / "hub"):
        assert answers("org/tiny") == expected
        assert process.dry_run(Settings(model_path=f"hf://org/tiny@{commit}", device="cpu")) == 0
        assert f"org/tiny@{commit}; context window" in capsys.readouterr().out
        with pytest.raises(SettingsError, match="not in the cache"):
            LLM("org/other")
        with pytest.raises(SettingsError, match="--no-hub"):
            LLM("org/tiny", hub=False)
