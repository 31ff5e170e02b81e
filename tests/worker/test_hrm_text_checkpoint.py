"""Raw HRM-Text checkpoints: plain and averaged weights, epochs, and marks.

The oracle is transformers' own network.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import HrmTextForCausalLM

from scripts.train.special_tokens import byte_tokenizer
from shared.messages import Generate, Sampling
from tests.fixtures.worker.hrm_text_raw import (
    HIDDEN,
    TOKENIZER_INFO,
    raw_weights,
    save_epoch,
    tiny,
    write_config,
)
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.stepping import generate_all
from worker.engine.runner import RunnerOptions
from worker.kv.attention import AttentionPlan, Span
from worker.models.errors import ModelFormatError
from worker.models.hrm_text import HrmTextModel
from worker.models.hrm_text_checkpoint import load_checkpoint
from worker.runners import hrm_text
from worker.runners.registry import detect, load_runner

PROMPT = (1, 4, 70, 71, 90, 33, 2)
RESPONSE = (40, 41, 8, 250)

Weights = tuple[dict[str, Tensor], dict[str, Tensor]]


@pytest.fixture(scope="module")
def nets() -> tuple[HrmTextForCausalLM, HrmTextForCausalLM]:
    """Return a plain and an averaged network, different in all but the buffer z_L_init."""
    plain = tiny(0)
    average = tiny(1)
    with torch.no_grad():
        average.model.z_L_init.copy_(plain.model.z_L_init)
    return plain, average


@pytest.fixture(scope="module")
def weights(nets: tuple[HrmTextForCausalLM, HrmTextForCausalLM]) -> Weights:
    """Return both networks' weights by the trainer's names; the averages lack the buffer."""
    plain_net, average_net = nets
    plain = raw_weights(plain_net)
    average = raw_weights(average_net)
    del average["model.zL_init"]
    return plain, average


@pytest.fixture(scope="module")
def saved(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory whose epoch 2 has zeros and whose epoch 10 has the two networks.

    The tokenizer lies where the metadata says.
    """
    path = tmp_path_factory.mktemp("raw")
    write_config(path)
    byte_tokenizer().save_pretrained(path / "tokenizer")
    plain, average = weights
    save_epoch(path / "fsdp2_epoch_10", plain, average)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in plain.items()}
    save_epoch(path / "fsdp2_epoch_2", zeros, average)
    return path


def our_logits(model: HrmTextModel) -> Tensor:
    """Return our network's logits of prompt and response, in one pass without stored keys."""
    ids = torch.tensor([*PROMPT, *RESPONSE])
    positions = torch.arange(len(ids))
    # A query sees all positions up to its own, and the whole prompt.
    is_past = positions[None, :] <= positions[:, None]
    is_prompt = (positions < len(PROMPT))[None, :]
    mask = is_past | is_prompt
    span = Span(0, len(ids), positions[None], has_fresh=True, mask=mask[None, None])
    plan = AttentionPlan(positions, ids[:1].expand(len(ids)), (span,))
    net = hrm_text.HrmTextNet(model, torch.device("cpu"))
    with torch.no_grad():
        return net.logits(net.hidden(ids, plan, None))


def own_logits(model: HrmTextForCausalLM) -> Tensor:
    """Return the logits of transformers' network; token type 1 is the prompt."""
    ids = torch.tensor([[*PROMPT, *RESPONSE]])
    types = torch.tensor([[1] * len(PROMPT) + [0] * len(RESPONSE)])
    with torch.no_grad():
        return model(input_ids=ids, token_type_ids=types, use_cache=False).logits[0]


@pytest.mark.parametrize("use_ema", [False, True], ids=["plain", "averaged"])
def test_logits_equal_transformers(
    saved: Path, nets: tuple[HrmTextForCausalLM, HrmTextForCausalLM], use_ema: bool
) -> None:
    """A loaded network's logits are those of transformers' network (hrm-formats 3).

    So names, the order of rows, cycles and the scale sqrt(H) are right, and each average goes to
    its own parameter.
    """
    plain, average = nets
    expected = plain
    other = average
    kind = "plain"
    if use_ema:
        expected = average
        other = plain
        kind = "averaged (EMA)"

    loaded = load_checkpoint(saved, use_ema=use_ema)

    logits = our_logits(loaded.model)
    assert torch.allclose(logits, own_logits(expected), atol=1e-4)
    difference = (logits - own_logits(other)).abs().max()
    assert difference > 0.1, "the test could not tell the two apart"
    assert loaded.note == f"fsdp2_epoch_10, {kind} weights"


def test_a_named_epoch_is_the_one_that_is_loaded(saved: Path) -> None:
    """The path of an epoch loads that epoch; the path of the directory loads the last one."""
    loaded = load_checkpoint(saved / "fsdp2_epoch_2", torch.bfloat16, use_ema=False)
    assert loaded.model.lm_head.weight.dtype == torch.bfloat16
    assert not loaded.model.lm_head.weight.any()
    assert detect(str(saved)) == "hrm-text"
    assert detect(str(saved / "fsdp2_epoch_2")) == "hrm-text"


def test_the_runner_says_what_transformers_generates(
    saved: Path, nets: tuple[HrmTextForCausalLM, HrmTextForCausalLM]
) -> None:
    """The runner generates what transformers does, by default with the averaged weights.

    Marks and tokenizer are those of train_metadata.yaml.
    """
    _, average = nets
    runner = load_runner("auto", RunnerOptions(path=str(saved), max_batch=2, page_size=4))
    assert "fsdp2_epoch_10, averaged (EMA) weights" in runner.spec.found
    assert runner.spec.context_window == 96

    task = Generate("2x + 3 = 9", Sampling(max_tokens=10, seed=0, temperature=0.0), condition="cot")
    prompt = torch.tensor([runner.encode(task).prompt_ids])
    expected = byte_tokenizer()(
        "<|im_start|><|object_ref_end|>2x + 3 = 9<|im_end|>", add_special_tokens=False
    )
    assert prompt[0].tolist() == expected["input_ids"]

    out = average.generate(
        prompt,
        token_type_ids=torch.ones_like(prompt),
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=10,
        do_sample=False,
    )
    [ids] = generate_all(runner, [task])
    assert ids == out[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize(
    ("arch", "scale"),
    [
        ({"init_type": "fixed_normal"}, 50.0),
        ({"init_type": "fixed_normal", "init_std": 0.25}, 4.0),
        ({"init_type": "megatron"}, HIDDEN**0.5),
        ({"init_type": "megatron", "init_std": 0.125}, 8.0),
    ],
)
def test_the_embedding_scale_follows_the_initialisation(
    saved: Path, tmp_path: Path, arch: dict[str, Any], scale: float
) -> None:
    """The scale of embeddings is derived from how the weights were initialised."""
    write_config(tmp_path, **arch)
    (tmp_path / "fsdp2_epoch_1").symlink_to(saved / "fsdp2_epoch_10")

    loaded = load_checkpoint(tmp_path)

    assert loaded.model.shape.embedding_scale == pytest.approx(scale)


def test_training_without_an_average_serves_the_plain_weights(
    tmp_path: Path, weights: Weights
) -> None:
    """A checkpoint that was trained without averages is loaded with its plain weights."""
    plain, _ = weights
    write_config(tmp_path, ema=None)
    save_epoch(tmp_path / "fsdp2_epoch_1", plain, {})

    loaded = load_checkpoint(tmp_path)

    assert loaded.note == "fsdp2_epoch_1, plain weights"
    assert torch.equal(loaded.model.lm_head.weight, plain["lm_head.weight"])


def test_buffers_of_older_trainers_are_left_out(tmp_path: Path, weights: Weights) -> None:
    """Buffers that older trainers saved are no fault."""
    plain, average = weights
    write_config(tmp_path)
    old = {
        "model.zH_init": torch.ones(HIDDEN),
        "model.L_level.core.rotary_emb.cos_cached": torch.ones(4),
    }
    save_epoch(tmp_path / "fsdp2_epoch_1", plain | old, average)

    loaded = load_checkpoint(tmp_path)

    assert torch.equal(loaded.model.lm_head.weight, average["lm_head.weight"])


def test_a_checkpoint_may_have_marks_of_its_own(saved: Path, tmp_path: Path) -> None:
    """Marks and conditions are those of the metadata, which may name the tokenizer's file."""
    info = TOKENIZER_INFO | {
        "tokenizer_path": str(saved / "tokenizer" / "tokenizer.json"),
        "boq": "<|quad_start|>",
        "eoq": "<|quad_end|>",
        "eoa": "<|im_start|>",
        "condition_mapping": {"terse": "<|box_end|>"},
    }
    write_config(tmp_path, metadata={"tokenizer_info": info})
    (tmp_path / "fsdp2_epoch_1").symlink_to(saved / "fsdp2_epoch_10")
    tokenizer = byte_tokenizer()

    runner = load_runner("auto", options_for(tmp_path, condition="terse"))

    encoded = runner.encode(Generate("hi", Sampling(max_tokens=4, seed=0)))
    expected = tokenizer("<|quad_start|><|box_end|>hi<|quad_end|>", add_special_tokens=False)
    assert list(encoded.prompt_ids) == expected["input_ids"]
    assert runner.eos_ids == {tokenizer.convert_tokens_to_ids("<|im_start|>")}

    with pytest.raises(
        ModelFormatError, match="Unknown condition 'direct': expected some of terse, or raw alone"
    ):
        load_runner("auto", RunnerOptions(path=str(tmp_path)))


def test_a_tokenizer_of_another_machine_must_be_given(saved: Path, tmp_path: Path) -> None:
    """A tokenizer path that is not there is refused with the setting that helps.

    The tokenizer may be given by that setting, or lie beside the checkpoint.
    """
    info = TOKENIZER_INFO | {"tokenizer_path": "/cluster/tokenizer"}
    write_config(tmp_path, metadata={"tokenizer_info": info})
    (tmp_path / "fsdp2_epoch_1").symlink_to(saved / "fsdp2_epoch_10")
    with pytest.raises(ModelFormatError, match="--tokenizer-path"):
        load_runner("auto", RunnerOptions(path=str(tmp_path)))

    with_tokenizer = RunnerOptions(path=str(tmp_path), tokenizer_path=str(saved / "tokenizer"))
    assert load_runner("auto", with_tokenizer).spec.runner == "hrm-text"

    for file in (saved / "tokenizer").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load_runner("auto", RunnerOptions(path=str(tmp_path))).spec.runner == "hrm-text"
