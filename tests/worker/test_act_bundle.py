"""The ACTv1 bundle loader: every dialect of brain.json is the same network, and every fault is
refused by name."""

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
    """T1: the network's own state dict is the published list, no name more or less."""
    model = bundle_of(tmp_path, net)[0].model
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes(net)
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(
    "net", [Net(window=3), Net(experts=4, experts_per_token=3)], ids=["dense", "moe"]
)
@pytest.mark.parametrize("dialect", ["top", "session", "arch_over_wrong_top"])
def test_every_dialect_is_the_same_network(tmp_path: Path, net: Net, dialect: Dialect) -> None:
    """T2: brain.json with arch only, top level only, session only, and arch over wrong top-level
    keys agree."""
    bundle, weights = bundle_of(tmp_path, net, dialect=dialect)
    assert bundle.config == bundle_of(tmp_path / "arch", net)[0].config
    assert bundle.config.halt_max_steps == 2 and bundle.config.max_seq_len == 16
    assert close(run(bundle.model, [ROW], 1)[0], reference(weights, net, ROW))


def test_silent_brain_json_takes_the_documented_defaults(tmp_path: Path) -> None:
    """T2: with nothing declared, heads 8, cycles 2 and 2, one segment, rotary, bidirectional, no
    window."""
    write_bundle(tmp_path)
    (tmp_path / "brain.json").write_text("{}")
    config = load_act_bundle(tmp_path).config
    assert (config.num_heads, config.h_cycles, config.l_cycles, config.halt_max_steps) == (
        8,
        2,
        2,
        1,
    )
    assert (config.pos_encoding, config.attention, config.window_size) == (
        "rope",
        "bidirectional",
        None,
    )


def test_dense_config_on_moe_weights_loads_the_moe(tmp_path: Path) -> None:
    """T6: brain.json saying use_moe false over MoE tensors loads those tensors, never random dense
    layers."""
    net = Net(experts=4)
    bundle, weights = bundle_of(tmp_path, net, brain={"use_moe": False, "num_experts": 0})
    assert bundle.config.num_experts == 4
    assert close(run(bundle.model, [ROW], 1)[0], reference(weights, net, ROW))


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
    """T6: any absent tensor refuses the load by name."""
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
    """T6: any tensor that the network has no place for refuses the load by name."""
    write_bundle(tmp_path, weights=random_weights(Net()) | {name: torch.zeros(2)})
    with pytest.raises(ModelFormatError, match=f"unexpected {name}"):
        load_act_bundle(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["inner.lm_head.weight", "inner.q_head.bias", "inner.L_level.layers.0.mlp.down_proj.weight"],
)
def test_a_mis_shaped_tensor_is_named(tmp_path: Path, name: str) -> None:
    """T6: a tensor of another shape refuses the load by name, with both shapes."""
    weights = random_weights(Net())
    was = list(weights[name].shape)
    weights[name] = weights[name][:-1].clone()
    write_bundle(tmp_path, weights=weights)
    with pytest.raises(ModelFormatError, match=f"{name} has shape .* where ") as caught:
        load_act_bundle(tmp_path)
    assert str(was) in str(caught.value)


def test_a_level_without_layers_and_mixed_layers_are_refused(tmp_path: Path) -> None:
    """T6: no level may be empty, and no layer may be dense in a network of experts."""
    dense = random_weights(Net())
    moe = random_weights(Net(experts=4))
    no_l = {name: tensor for name, tensor in dense.items() if "L_level" not in name}
    mixed = {name: tensor for name, tensor in moe.items() if "L_level" not in name}
    mixed |= {name: tensor for name, tensor in dense.items() if "L_level" in name}
    for weights, named in (
        (no_l, "missing inner.L_level.layers.0"),
        (mixed, "missing inner.L_level.layers.0.mlp.moe"),
    ):
        write_bundle(tmp_path, weights=weights)
        with pytest.raises(ModelFormatError, match=named):
            load_act_bundle(tmp_path)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    """T6: quantised tensors, which the network would read as huge numbers, are refused by name."""
    weights = random_weights(Net())
    weights["inner.q_head.bias"] = torch.zeros(2, dtype=torch.int8)
    write_bundle(tmp_path, weights=weights)
    with pytest.raises(ModelFormatError, match=r"inner.q_head.bias is torch.int8"):
        load_act_bundle(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_head_that_could_not_decide_is_refused(tmp_path: Path, number: float) -> None:
    weights = random_weights(Net())
    weights["inner.q_head.weight"][1, 0] = number
    write_bundle(tmp_path, weights=weights)
    with pytest.raises(
        ModelFormatError,
        match=r"numbers that are not finite, in inner.q_head.weight; copy it again",
    ):
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
    """X16, A41: safetensors and torch files load under either suffix, by directory and by file."""
    weights = write_bundle(tmp_path, weights_format=weights_format, filename=filename)
    for path in (tmp_path, tmp_path / filename):
        assert detect(str(path)) == "hrm-act"
        assert torch.equal(
            load_act_bundle(path).model.inner.lm_head.weight, weights["inner.lm_head.weight"]
        )


def test_checkpoint_file_is_preferred(tmp_path: Path) -> None:
    """Format notes section 1: `checkpoint_file` wins over the usual names, and is passed over where
    it is absent."""
    usual = write_bundle(tmp_path, weights=random_weights(Net(), seed=1))
    chosen = write_bundle(tmp_path, filename="mine.bin", brain={"checkpoint_file": "mine.bin"})
    assert torch.equal(load_act_bundle(tmp_path).model.inner.L_init, chosen["inner.L_init"])
    (tmp_path / "mine.bin").unlink()
    assert torch.equal(load_act_bundle(tmp_path).model.inner.L_init, usual["inner.L_init"])


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."]
)
def test_wrapper_prefixes_are_stripped(tmp_path: Path, prefix: str) -> None:
    """Format notes section 1: names saved through DDP, torch.compile or PEFT load as the bare names
    do."""
    bundle, weights = bundle_of(tmp_path, Net(), prefix=prefix)
    assert torch.equal(bundle.model.inner.H_init, weights["inner.H_init"])


def test_a_tensor_under_two_prefixes_is_refused(tmp_path: Path) -> None:
    """T6: two candidates for one place are not settled by chance."""
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
    """T6: what brain.json says and the tensors cannot be is an error in words, not a guess."""
    write_bundle(tmp_path, dialect="top", brain=declared)
    with pytest.raises(ModelFormatError, match=message):
        load_act_bundle(tmp_path)


def test_more_experts_a_token_than_experts_is_refused(tmp_path: Path) -> None:
    """T6: the router cannot pick more experts than the tensors hold."""
    write_bundle(tmp_path, Net(experts=2, experts_per_token=3))
    with pytest.raises(ModelFormatError, match="3 experts per token, but only 2 experts"):
        load_act_bundle(tmp_path)


def test_unreadable_bundles_are_refused_in_words(tmp_path: Path) -> None:
    """T6, X16: absent path, absent or broken brain.json, no weights, and files that are not plain
    tensors."""

    def message(path: Path) -> str:
        with pytest.raises(ModelFormatError) as caught:
            load_act_bundle(path)
        return str(caught.value)

    weights_file = tmp_path / "actv1_student.safetensors"
    assert "does not exist" in message(tmp_path / "absent")
    assert "has no brain.json" in message(tmp_path)
    for text, complaint in (
        ("{", "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "has no weights file"),
    ):
        (tmp_path / "brain.json").write_text(text)
        assert complaint in message(tmp_path)
    weights_file.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "is a pointer of Git LFS" in message(tmp_path)
    weights_file.write_bytes(b"neither of them")
    assert "is neither a safetensors file nor a torch zip file" in message(tmp_path)
    for damage in (b"\xff\0\0\0\0\0\0\0{}", b"PK\x03\x04 cut short"):
        weights_file.write_bytes(damage)
        assert "cannot be read as weights" in message(tmp_path)
    torch.save({"model": {"inner.H_init": torch.zeros(2)}}, weights_file)
    assert "something other than a flat map of named tensors" in message(tmp_path)
    torch.save(Net(), weights_file)
    assert "cannot be read as weights" in message(tmp_path)


def test_tokenizer_is_found_beside_the_brain_then_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Format notes section 1: a relative tokenizer is the bundle's, else the working directory's;
    absent is None."""
    brain = tmp_path / "brain"
    here = tmp_path / "here"
    monkeypatch.chdir(tmp_path)
    (here / "tok").mkdir(parents=True)
    assert bundle_of(brain, Net())[0].tokenizer_path is None
    assert bundle_of(brain, Net(), tokenizer="tok")[0].tokenizer_path is None
    monkeypatch.chdir(here)
    found = load_act_bundle(brain).tokenizer_path
    assert found is not None and found.resolve() == here / "tok"
    (brain / "tok").mkdir()
    assert load_act_bundle(brain).tokenizer_path == brain / "tok"
    assert bundle_of(brain, Net(), tokenizer=here / "tok")[0].tokenizer_path == here / "tok"


def test_name_description_and_dtype(tmp_path: Path) -> None:
    """D91: a loaded brain can say in a line what it is; weights arrive in the dtype asked for,
    logits in fp32."""
    bundle, weights = bundle_of(tmp_path, Net())
    count = sum(tensor.numel() for tensor in weights.values()) - 2 * 16
    assert bundle.name == "demo"
    assert bundle.description == (
        "AI-OS ACTv1 brain 'demo': dense, hidden 16, 2+1 layers, 3x2 cycles, 2 heads, rope "
        f"positions, bidirectional, {count:,} parameters"
    )
    half = load_act_bundle(tmp_path, torch.bfloat16).model
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}
    logits, q = run(half, [ROW], 1)[0]
    assert logits.dtype == q.dtype == torch.float32
    assert close((logits, q), run(bundle.model, [ROW], 1)[0], 0.5)
