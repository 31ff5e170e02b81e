"""Implants: a base LM that is served unchanged, and a q head that reads its last state.

Implants that are not complete are refused.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from scripts.train.special_tokens import byte_tokenizer
from shared.messages import Done, Generate, Sampling
from tests.fixtures.worker.stepping import generate_all, run
from worker.engine.runner import RunnerOptions
from worker.kv.attention import AttentionPlan, Span
from worker.models.errors import ModelFormatError
from worker.models.q_head import find_implant, load_q_head
from worker.runners import causal
from worker.runners.registry import detect, load_runner

HIDDEN = 48


def head() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "weight": torch.randn(2, HIDDEN, generator=generator),
        "bias": torch.tensor([-5.0, -4.0]),
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GPT2LMHeadModel]:
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("base")
    config = GPT2Config(vocab_size=264, n_positions=96, n_embd=HIDDEN, n_layer=2, n_head=3)
    model = GPT2LMHeadModel(config).eval()
    model.generation_config.eos_token_id = 3
    model.generation_config.pad_token_id = 0
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path, model


def write_starter(directory: Path, base: Path, **fields: Any) -> Path:
    """Write an implant with its head and its JSON, whose other `fields` the caller chooses."""
    torch.save(head(), directory / "head.pt")
    starter = {
        "model": str(base),
        "q_head": "head.pt",
        "max_seq_len": 64,
        "halt_max_steps": 2,
        "device": "cuda",
    }
    starter |= fields
    (directory / "starter_brain.json").write_text(json.dumps(starter))
    return directory


def test_an_implant_says_what_its_base_says(
    tmp_path: Path, base: tuple[Path, GPT2LMHeadModel]
) -> None:
    """An implant answers as its base LM does."""
    base_path, model = base
    path = write_starter(tmp_path, base_path)
    runner = load_runner("auto", RunnerOptions(path=str(path), page_size=4))
    assert runner.spec.runner == "causal"
    assert runner.spec.context_window == 64
    assert runner.spec.found.endswith("q head head.pt")

    task = Generate("Hello", Sampling(max_tokens=8, seed=0, temperature=0.0))
    [answer] = generate_all(runner, [task])

    prompt = torch.tensor([runner.encode(task).prompt_ids])
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False
    )
    assert answer == out[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_q_values_are_those_of_the_models_own_last_state(
    tmp_path: Path, base: tuple[Path, GPT2LMHeadModel], dtype: torch.dtype
) -> None:
    """q values are W h + b in float32, whatever dtype the LM runs in.

    The state h is transformers' last hidden state at the last position.
    """
    torch.save(head(), tmp_path / "q_head.pt")
    model = GPT2LMHeadModel.from_pretrained(
        base[0], dtype=dtype, attn_implementation="eager"
    ).eval()
    ids = torch.tensor([7, 30, 41, 99, 12])
    positions = torch.arange(len(ids))
    with torch.no_grad():
        out = model(ids[None], output_hidden_states=True)
    state_of_transformers = out.hidden_states[-1][0, -1]

    q_head = load_q_head(tmp_path / "q_head.pt", HIDDEN)
    net = causal.checked_net(model, 96, torch.device("cpu"), q_head)
    span = Span(0, len(ids), positions[None], has_fresh=True, is_causal=True)
    plan = AttentionPlan(positions, ids[:1].expand(len(ids)), (span,))
    with torch.no_grad():
        hidden = net.hidden(ids, plan, None)
    assert net.q_head is not None
    values = net.q_head(hidden[-1:])

    assert values.dtype == torch.float32
    assert values.shape == (1, 2)
    assert torch.allclose(values[0].double(), expected_q_values(hidden[-1]), atol=1e-4)
    # Our attention rounds bfloat16 in another order than transformers' does.
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    expected = expected_q_values(state_of_transformers)
    assert torch.allclose(values[0].double(), expected, atol=tolerance)


def expected_q_values(state: Tensor) -> Tensor:
    parts = head()
    return parts["weight"].double() @ state.double() + parts["bias"].double()


def test_the_answer_tells_the_q_values_of_its_last_state(
    tmp_path: Path, base: tuple[Path, GPT2LMHeadModel]
) -> None:
    """A41: Each choice reports q_halt and q_continue of the state that gave its last token.

    Each token that is asked for its log-probability reports those of its own state.
    """
    base_path, model = base
    path = write_starter(tmp_path, base_path)
    runner = load_runner("auto", RunnerOptions(path=str(path), page_size=4))
    task = Generate("Hello", Sampling(max_tokens=5, seed=0, temperature=1.0, n=2, logprobs=0))
    prompt_ids = runner.encode(task).prompt_ids

    emissions = run(runner, [task], [[]])

    done = emissions[-1].ended
    assert isinstance(done, Done)
    assert len(done.generated.q_values) == 2
    for choice, q_values in enumerate(done.generated.q_values):
        answer: list[int] = []
        told: list[tuple[float, float]] = []
        for emission in emissions:
            if emission.choice == choice:
                answer += emission.ids
                for logprob in emission.logprobs:
                    assert logprob.halt is not None
                    assert logprob.halt.segments == 0
                    told.append((logprob.halt.q_halt, logprob.halt.q_continue))
        # The state behind all tokens but the last gave the last one.
        ids = torch.tensor([[*prompt_ids, *answer[:-1]]])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[-1][0]
        expected = [tuple(expected_q_values(state).tolist()) for state in states[-len(answer) :]]
        for pair, of_state in zip(told, expected, strict=True):
            assert pair == pytest.approx(of_state, abs=1e-4)
        assert q_values == told[-1]


@pytest.mark.parametrize("base_name", ["model", "base_model", "."])
def test_a_head_beside_its_base_needs_no_json(
    tmp_path: Path, base: tuple[Path, GPT2LMHeadModel], base_name: str
) -> None:
    """A `q_head.pt` beside its base LM, or in the same directory, is an implant without JSON."""
    target = tmp_path / base_name
    target.mkdir(exist_ok=True)
    for file in base[0].iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    torch.save(head(), tmp_path / "q_head.pt")
    (tmp_path / "lora").mkdir()
    for path in (tmp_path, tmp_path / "q_head.pt"):
        assert detect(str(path)) == "causal"
        implant = find_implant(path)
        assert implant is not None
        assert implant.base.resolve() == target.resolve()
        assert implant.q_head == tmp_path / "q_head.pt"

    runner = load_runner("auto", RunnerOptions(path=str(tmp_path / "q_head.pt")))
    assert "q head q_head.pt" in runner.spec.found


def test_relative_names_are_of_the_bundle_or_the_working_directory(
    tmp_path: Path, base: tuple[Path, GPT2LMHeadModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative name in the JSON is looked up in the implant and in the working directory."""
    base_path, _ = base
    monkeypatch.chdir(base_path.parent)
    write_starter(tmp_path, base_path, model=base_path.name, peft_dir="nowhere")

    implant = find_implant(tmp_path / "starter_brain.json")

    assert implant is not None
    assert implant.base.resolve() == base_path.resolve()
    assert find_implant(base_path) is None


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"model": "gpt2"}, "no Hugging Face directory here"),
        ({"model": 3}, r"Expected `str`, got `int` - at `\$.model`"),
        ({"q_head": "other.pt"}, r"no q head at .*other\.pt"),
        ({"peft_dir": "adapters"}, "adapters holds trained adapters"),
    ],
)
def test_parts_that_are_missing_or_not_served_are_named(
    tmp_path: Path, base: tuple[Path, GPT2LMHeadModel], more: dict[str, Any], expected: str
) -> None:
    """The error names the part of an implant that is missing, or that is not served."""
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "adapter_model.safetensors").touch()
    write_starter(tmp_path, base[0], **more)
    with pytest.raises(ModelFormatError, match=expected):
        load_runner("auto", RunnerOptions(path=str(tmp_path)))


def test_an_adapter_beside_the_head_is_refused(
    tmp_path: Path, base: tuple[Path, GPT2LMHeadModel]
) -> None:
    """An implant with an adapter beside its head is refused."""
    write_starter(tmp_path, base[0])
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelFormatError, match="merge them first"):
        find_implant(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"weight": torch.zeros(2, HIDDEN)}, "missing bias"),
        (head() | {"extra": torch.zeros(1)}, "unexpected extra"),
        ({"weight": torch.zeros(2, 8), "bias": torch.zeros(2)}, r"weight has shape \[2, 8\]"),
        ({"state_dict": head()}, "flat map"),
    ],
)
def test_a_head_of_another_net_is_refused(
    tmp_path: Path, tensors: dict[str, Any], expected: str
) -> None:
    """A head with other tensors, or other shapes, is refused."""
    torch.save(tensors, tmp_path / "q_head.pt")
    with pytest.raises(ModelFormatError, match=expected):
        load_q_head(tmp_path / "q_head.pt", HIDDEN)
