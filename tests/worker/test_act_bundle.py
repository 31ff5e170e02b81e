"""The ACTv1 bundle loader: every dialect of brain.json is the same network.

Every fault is refused by name.
"""

from pathlib import Path

import pytest
import torch

from tests.fixtures.worker.act_fixtures import (
    Dialect,
    Format,
    Net,
    random_weights,
    shapes,
    write_bundle,
)
from tests.fixtures.worker.act_reference import ROW, bundle_of, close, reference, run
from worker.models.act_bundle import load_act_bundle
from worker.models.errors import ModelFormatError
from worker.runners.registry import detect


@pytest.mark.parametrize(
    "net", [Net(), Net(experts=4, learned=True)], ids=["dense", "moe with learned positions"]
)
def test_state_dict_names_and_shapes(tmp_path: Path, net: Net) -> None:
    """The network's own state dict is the published list, no name more or less (T1)."""
    bundle, _ = bundle_of(tmp_path, net)
    model = bundle.model

    expected = shapes(net)
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert tuple(tensor.shape) == expected[name]
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(
    "net", [Net(window=3), Net(experts=4, experts_per_token=3)], ids=["dense", "moe"]
)
@pytest.mark.parametrize("dialect", ["top", "session", "arch_over_wrong_top"])
def test_every_dialect_is_the_same_network(tmp_path: Path, net: Net, dialect: Dialect) -> None:
    """Every place where brain.json may declare the network gives the same one (T2).

    The places are `arch` only, the top level only, `session` only, and `arch` over wrong top-level
    keys.
    """
    bundle, weights = bundle_of(tmp_path, net, dialect=dialect)
    in_arch, _ = bundle_of(tmp_path / "arch", net)

    assert bundle.config == in_arch.config
    assert bundle.config.halt_max_steps == 2
    assert bundle.config.max_seq_len == 16
    [outputs] = run(bundle.model, [ROW], 1)
    assert close(outputs, reference(weights, net, ROW))


def test_silent_brain_json_takes_the_documented_defaults(tmp_path: Path) -> None:
    """A brain.json that declares nothing gives the documented defaults (T2)."""
    write_bundle(tmp_path)
    (tmp_path / "brain.json").write_text("{}")

    config = load_act_bundle(tmp_path).config

    assert config.num_heads == 8
    assert config.h_cycles == 2
    assert config.l_cycles == 2
    assert config.halt_max_steps == 1
    assert config.pos_encoding == "rope"
    assert config.attention == "bidirectional"
    assert config.window_size is None


def test_dense_config_on_moe_weights_loads_the_moe(tmp_path: Path) -> None:
    """MoE tensors are loaded even where brain.json says `use_moe` false (T6).

    There are never random dense layers in their place.
    """
    net = Net(experts=4)
    bundle, weights = bundle_of(tmp_path, net, brain={"use_moe": False, "num_experts": 0})

    assert bundle.config.num_experts == 4
    [outputs] = run(bundle.model, [ROW], 1)
    assert close(outputs, reference(weights, net, ROW))


@pytest.mark.parametrize(
    "name",
    [
        "inner.H_init",
        "inner.L_init",
        "inner.embed_tokens.embedding_weight",
        "inner.q_head.bias",
        "inner.H_level.layers.0.mlp.down_proj.weight",
        "inner.H_level.layers.1.self_attn.o_proj.weight",
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    """A load is refused with the name of an absent tensor (T6)."""
    weights = random_weights(Net())
    del weights[name]
    write_bundle(tmp_path, weights=weights)
    with pytest.raises(ModelFormatError, match=f"missing {name}"):
        load_act_bundle(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "inner.puzzle_emb.weights",
        "inner.H_level.layers.7.self_attn.o_proj.weight",
        "lora.A",
        "embed_tokens",
    ],
)
def test_an_unknown_tensor_is_named(tmp_path: Path, name: str) -> None:
    """A load is refused with the name of a tensor that the network does not have (T6)."""
    write_bundle(tmp_path, weights=random_weights(Net()) | {name: torch.zeros(2)})
    with pytest.raises(ModelFormatError, match=f"unexpected {name}"):
        load_act_bundle(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["inner.lm_head.weight", "inner.q_head.bias", "inner.L_level.layers.0.mlp.down_proj.weight"],
)
def test_a_mis_shaped_tensor_is_named(tmp_path: Path, name: str) -> None:
    """A load is refused with the name of a mis-shaped tensor and both shapes (T6)."""
    weights = random_weights(Net())
    shape = list(weights[name].shape)
    weights[name] = weights[name][:-1].clone()
    write_bundle(tmp_path, weights=weights)
    with pytest.raises(ModelFormatError, match=f"{name} has shape .* where ") as caught:
        load_act_bundle(tmp_path)
    assert str(shape) in str(caught.value)


def test_a_level_without_layers_and_mixed_layers_are_refused(tmp_path: Path) -> None:
    """No level may be empty, and no layer may be dense in a network of experts (T6)."""
    dense = random_weights(Net())
    moe = random_weights(Net(experts=4))
    no_l_level = dict(dense)
    mixed = dict(moe)
    for name in moe:
        if "L_level" in name:
            del mixed[name]
    for name, tensor in dense.items():
        if "L_level" in name:
            del no_l_level[name]
            mixed[name] = tensor

    write_bundle(tmp_path, weights=no_l_level)
    with pytest.raises(ModelFormatError, match=r"missing inner.L_level.layers.0"):
        load_act_bundle(tmp_path)

    write_bundle(tmp_path, weights=mixed)
    with pytest.raises(ModelFormatError, match=r"missing inner.L_level.layers.0.mlp.moe"):
        load_act_bundle(tmp_path)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    """A quantised tensor is refused by name (T6): it would be read as huge numbers."""
    weights = random_weights(Net())
    weights["inner.q_head.bias"] = torch.zeros(2, dtype=torch.int8)
    write_bundle(tmp_path, weights=weights)
    with pytest.raises(ModelFormatError, match=r"inner.q_head.bias is torch.int8"):
        load_act_bundle(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_head_that_could_not_decide_is_refused(tmp_path: Path, number: float) -> None:
    """A halting head with NaN or infinity in it is refused by name."""
    weights = random_weights(Net())
    weights["inner.q_head.weight"][1, 0] = number
    write_bundle(tmp_path, weights=weights)
    sentence = r"numbers that are not finite, in inner.q_head.weight; copy it again"
    with pytest.raises(ModelFormatError, match=sentence):
        load_act_bundle(tmp_path)


@pytest.mark.parametrize(
    ("weights_format", "filename"),
    [
        ("safetensors", "actv1_student.safetensors"),
        ("safetensors", "actv1_student.pt"),
        ("safetensors", "final_model.safetensors"),
        ("pt", "actv1_student.pt"),
        ("pt", "actv1_student.safetensors"),
    ],
)
def test_bytes_not_suffixes_say_the_format(
    tmp_path: Path, weights_format: Format, filename: str
) -> None:
    """Safetensors and torch files load under either suffix (X16, A41).

    They do so by the directory's path and by the file's.
    """
    weights = write_bundle(tmp_path, weights_format=weights_format, filename=filename)
    for path in (tmp_path, tmp_path / filename):
        assert detect(str(path)) == "hrm-act"
        lm_head = load_act_bundle(path).model.inner.lm_head
        assert torch.equal(lm_head.weight, weights["inner.lm_head.weight"])


def test_checkpoint_file_is_preferred(tmp_path: Path) -> None:
    """`checkpoint_file` wins over the usual names (format notes, section 1).

    It is passed over where that file is absent.
    """
    usual = write_bundle(tmp_path, weights=random_weights(Net(), seed=1))
    chosen = write_bundle(tmp_path, filename="mine.bin", brain={"checkpoint_file": "mine.bin"})
    assert torch.equal(load_act_bundle(tmp_path).model.inner.L_init, chosen["inner.L_init"])

    (tmp_path / "mine.bin").unlink()
    assert torch.equal(load_act_bundle(tmp_path).model.inner.L_init, usual["inner.L_init"])


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."]
)
def test_wrapper_prefixes_are_stripped(tmp_path: Path, prefix: str) -> None:
    """Names saved through DDP, torch.compile or PEFT load as the bare names do.

    Format notes, section 1.
    """
    bundle, weights = bundle_of(tmp_path, Net(), prefix=prefix)
    assert torch.equal(bundle.model.inner.H_init, weights["inner.H_init"])


def test_a_tensor_under_two_prefixes_is_refused(tmp_path: Path) -> None:
    """A tensor that is there twice is refused: chance must not choose (T6)."""
    write_bundle(tmp_path, weights=random_weights(Net()) | {"module.inner.H_init": torch.zeros(16)})
    with pytest.raises(ModelFormatError, match=r"holds inner\.H_init twice"):
        load_act_bundle(tmp_path)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"num_heads": 5}, "hidden size 16 does not divide into 5 heads"),
        ({"num_heads": 16}, "rotary positions need an even head size, not 1"),
        ({"h_cycles": 0}, "H_cycles is 0, not a whole number from 1 up"),
        ({"l_cycles": "two"}, "L_cycles is 'two'"),
        ({"attention": "sideways"}, "neither 'bidirectional' nor 'causal'"),
        ({"pos_encoding": "learned"}, r"missing inner\.embed_pos\.embedding_weight"),
    ],
)
def test_impossible_declarations_are_refused(
    tmp_path: Path, declared: dict[str, object], message: str
) -> None:
    """A declaration that the tensors contradict is refused in words, never guessed around (T6)."""
    write_bundle(tmp_path, dialect="top", brain=declared)
    with pytest.raises(ModelFormatError, match=message):
        load_act_bundle(tmp_path)


def test_more_experts_a_token_than_experts_is_refused(tmp_path: Path) -> None:
    """The router cannot pick more experts than the tensors hold (T6)."""
    write_bundle(tmp_path, Net(experts=2, experts_per_token=3))
    with pytest.raises(ModelFormatError, match="3 experts per token, but only 2 experts"):
        load_act_bundle(tmp_path)


def refusal(path: Path) -> str:
    """Return the sentence with which a path is refused."""
    with pytest.raises(ModelFormatError) as caught:
        load_act_bundle(path)
    return str(caught.value)


def test_unreadable_bundles_are_refused_in_words(tmp_path: Path) -> None:
    """A path without a readable brain.json and plain tensors is refused in words (T6, X16)."""
    assert "does not exist" in refusal(tmp_path / "absent")

    config = tmp_path / "brain.json"
    assert "has no brain.json" in refusal(tmp_path)
    config.write_text("{")
    assert "is not valid JSON" in refusal(tmp_path)
    config.write_text("[]")
    assert "is not a JSON object" in refusal(tmp_path)
    config.write_text("{}")
    assert "has no weights file" in refusal(tmp_path)

    weights_file = tmp_path / "actv1_student.safetensors"
    weights_file.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "is a pointer of Git LFS" in refusal(tmp_path)
    weights_file.write_bytes(b"neither of them")
    assert "is neither a safetensors file nor a torch zip file" in refusal(tmp_path)
    for damaged in (b"\xff\0\0\0\0\0\0\0{}", b"PK\x03\x04 cut short"):
        weights_file.write_bytes(damaged)
        assert "cannot be read as weights" in refusal(tmp_path)

    torch.save({"model": {"inner.H_init": torch.zeros(2)}}, weights_file)
    assert "something other than a flat map of named tensors" in refusal(tmp_path)
    torch.save(Net(), weights_file)
    assert "cannot be read as weights" in refusal(tmp_path)


def test_tokenizer_is_found_beside_the_brain_then_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative tokenizer is the bundle's, else the working directory's, else None.

    Format notes, section 1.
    """
    brain = tmp_path / "brain"
    here = tmp_path / "here"
    (here / "tok").mkdir(parents=True)

    monkeypatch.chdir(tmp_path)
    bundle, _ = bundle_of(brain, Net())
    assert bundle.tokenizer_path is None
    bundle, _ = bundle_of(brain, Net(), tokenizer="tok")
    assert bundle.tokenizer_path is None

    monkeypatch.chdir(here)
    tokenizer_path = load_act_bundle(brain).tokenizer_path
    assert tokenizer_path is not None
    assert tokenizer_path.resolve() == here / "tok"

    (brain / "tok").mkdir()
    assert load_act_bundle(brain).tokenizer_path == brain / "tok"

    # An absolute path is taken as it is.
    bundle, _ = bundle_of(brain, Net(), tokenizer=here / "tok")
    assert bundle.tokenizer_path == here / "tok"


def test_name_description_and_dtype(tmp_path: Path) -> None:
    """A loaded brain describes itself in a line (D91).

    Weights have the dtype that is asked for, and logits are float32.
    """
    bundle, weights = bundle_of(tmp_path, Net())
    # The initial states of the two levels, 16 wide, are buffers.
    count = sum(tensor.numel() for tensor in weights.values()) - 2 * 16
    assert bundle.name == "demo"
    assert bundle.description == (
        "AI-OS ACTv1 brain 'demo': dense, hidden 16, 2+1 layers, 3x2 cycles, 2 heads, rope "
        f"positions, bidirectional, {count:,} parameters"
    )

    half = load_act_bundle(tmp_path, torch.bfloat16).model
    for tensor in half.state_dict().values():
        assert tensor.dtype == torch.bfloat16
    [(logits, q_values)] = run(half, [ROW], 1)
    assert logits.dtype == torch.float32
    assert q_values.dtype == torch.float32
    [full] = run(bundle.model, [ROW], 1)
    assert close((logits, q_values), full, 0.5)
