"""Damaged and foreign model directories: every loader refuses them in one sentence.

The sentence names the file and a remedy. It is a SettingsError, which every role's command line
turns into status 2.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.settings.settings import ModelEntry, Settings, SettingsError
from tests.fixtures.logged import fields_of
from tests.fixtures.worker.whole_models import WRITERS
from worker.host.loading import LoadedModel, load_models
from worker.runners import causal

REMEDIES = ("copy", "correct", "serve", "give", "merge", "convert", "name", "let the user")
Whole = Callable[[str], Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Return the directory of a whole model by its kind, written once."""
    root = tmp_path_factory.mktemp("whole")

    def of_kind(kind: str) -> Path:
        path = root / kind
        if not path.exists():
            WRITERS[kind](path)
        return path

    return of_kind


@pytest.fixture
def copied(whole: Whole, tmp_path: Path) -> Callable[[str], Path]:
    """Copy the directory of a whole model, for a test to damage."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(whole(kind), tmp_path / "model"))

    return copy


def load_model(path: Path) -> LoadedModel:
    settings = Settings(
        models=(ModelEntry(id="mine", path=str(path)),), max_batch_size=2, device="cpu", threads=1
    )
    [model] = load_models(settings)
    return model


def load(path: Path) -> str:
    """Return the line that describes the model."""
    return load_model(path).info.found


def refusal(path: Path) -> str:
    """Return the sentence with which a directory is refused, after a check of its form."""
    with pytest.raises(SettingsError) as refused:
        load(path)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert sentence.startswith("model 'mine'")
    assert str(path) in sentence
    assert any(remedy in sentence.lower() for remedy in REMEDIES), sentence
    return sentence


def update_json(file: Path, fields: dict[str, Any]) -> None:
    """Set fields of a JSON object, which is empty where there is no file."""
    content: dict[str, Any] = {}
    if file.exists():
        content = json.loads(file.read_text())
    content.update(fields)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", WRITERS)
def test_whole_ones_are_served(whole: Whole, kind: str) -> None:
    """The whole models are served; otherwise the other tests would prove nothing."""
    assert load(whole(kind))


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def scribbled(file: Path) -> None:
    """Overwrite the first part, where headers are."""
    content = bytearray(file.read_bytes())
    content[:48] = b"\xff\x00?" * 16
    file.write_bytes(content)


def lost(file: Path) -> None:
    file.unlink()


def directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def link_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


DAMAGES = (cut, emptied, scribbled, lost, directory, link_to_itself)
FILES = {
    "causal": ("config.json", "model.safetensors", "tokenizer.json"),
    "causal-shards": ("model-00002-of-00002.safetensors", "model.safetensors.index.json"),
    "hrm-text": ("config.json", "model.safetensors", "tokenizer.json"),
    "hrm-text-shards": ("model-00002-of-00002.safetensors", "model.safetensors.index.json"),
    "raw": (
        "all_config.yaml",
        "train_metadata.yaml",
        "fsdp2_epoch_1/.metadata",
        "fsdp2_epoch_1/__0_0.distcp",
    ),
    "brain": ("brain.json", "actv1_student.safetensors", "tokenizer/tokenizer.json"),
    "sapient": ("all_config.yaml", "checkpoint"),
    "encoder": ("config.json", "model.safetensors", "tokenizer.json"),
    "implant": ("starter_brain.json", "head.pt", "base/config.json", "base/model.safetensors"),
}
SPARED = [
    # All that is needed stands in the first half.
    ("train_metadata.yaml", cut),
    # Only what the optimizer kept is lost.
    ("fsdp2_epoch_1/__0_0.distcp", cut),
    ("fsdp2_epoch_1/__0_0.distcp", scribbled),
]


def damaged_files() -> list[tuple[str, str, Callable[[Path], None]]]:
    """List every damage to every file that makes its model unusable."""
    cases: list[tuple[str, str, Callable[[Path], None]]] = []
    for kind, files in FILES.items():
        for file in files:
            for damage in DAMAGES:
                if (file, damage) not in SPARED:
                    cases.append((kind, file, damage))
    return cases


@pytest.mark.parametrize(("kind", "file", "damage"), damaged_files())
def test_a_damaged_file_is_named(
    copied: Callable[[str], Path], kind: str, file: str, damage: Callable[[Path], None]
) -> None:
    """The refusal names the damaged file, or the directory of a sharded checkpoint."""
    path = copied(kind)
    damage(path / file)
    sentence = refusal(path)

    # Without these files the kind is unknown: the sentence lists the files that tell it.
    if damage is lost and file in ("brain.json", "starter_brain.json"):
        return

    named = Path(file).name
    if "distcp" in file or (damage is lost and "index" not in file):
        named = Path(file).parts[0]
    if damage is lost:
        # A file that is not there is named without its suffix and the number of its shard.
        stem = named.split(".")[0].split("-of")[0]
        assert stem in sentence or "no weights" in sentence, sentence
    else:
        assert named in sentence, sentence


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("causal", "model.safetensors"),
        ("causal", "tokenizer.json"),
        ("causal-shards", "model-00001-of-00002.safetensors"),
        ("hrm-text", "model.safetensors"),
        ("encoder", "model.safetensors"),
        ("brain", "actv1_student.safetensors"),
        ("sapient", "checkpoint"),
        ("sapient", "all_config.yaml"),
        ("implant", "head.pt"),
    ],
)
def test_what_a_clone_without_git_lfs_leaves(
    copied: Callable[[str], Path], kind: str, file: str
) -> None:
    """A pointer of Git LFS in place of a file is refused as one."""
    path = copied(kind)
    (path / file).write_text(LFS_POINTER)
    assert f"{path / file} is a pointer of Git LFS" in refusal(path)


def test_optional_files_must_be_whole_where_they_are(copied: Callable[[str], Path]) -> None:
    """An optional file that is cut off is refused by name."""
    path = copied("causal")
    for name in (
        "generation_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ):
        file = path / name
        before = file.read_bytes() if file.exists() else None
        file.write_text('{"cut": ')

        assert name in refusal(path)

        file.unlink()
        if before is not None:
            file.write_bytes(before)
    assert load(path)


@pytest.mark.parametrize("content", ["[]", "null", '"text"', "7"])
@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("causal", "config.json"),
        ("hrm-text", "config.json"),
        ("encoder", "config.json"),
        ("brain", "brain.json"),
        ("implant", "starter_brain.json"),
        ("sapient", "all_config.yaml"),
        ("raw", "all_config.yaml"),
        ("causal-shards", "model.safetensors.index.json"),
        ("hrm-text-shards", "model.safetensors.index.json"),
        ("causal", "tokenizer.json"),
    ],
)
def test_json_of_another_shape(
    copied: Callable[[str], Path], kind: str, file: str, content: str
) -> None:
    """A file whose content is valid, but is no object, is refused by name."""
    path = copied(kind)
    (path / file).write_text(content)
    assert file in refusal(path)


WRONG_FIELDS: list[tuple[str, str, dict[str, Any]]] = [
    ("causal", "config.json", {"num_attention_heads": 0}),
    ("causal", "config.json", {"num_attention_heads": "two"}),
    ("causal", "config.json", {"hidden_size": -1}),
    ("causal", "config.json", {"hidden_size": 48}),
    ("causal", "config.json", {"vocab_size": None}),
    ("causal", "config.json", {"rope_parameters": "fast"}),
    ("causal", "config.json", {"hidden_act": "magic"}),
    ("causal", "config.json", {"architectures": "LlamaForCausalLM"}),
    ("causal", "config.json", {"architectures": [None]}),
    ("causal", "config.json", {"model_type": "of-tomorrow"}),
    ("causal", "config.json", {"model_type": "whisper"}),
    ("causal", "config.json", {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}),
    ("hrm-text", "config.json", {"num_attention_heads": 0}),
    ("hrm-text", "config.json", {"num_attention_heads": "two"}),
    ("hrm-text", "config.json", {"H_cycles": None}),
    ("hrm-text", "config.json", {"L_cycles": -1}),
    ("hrm-text", "config.json", {"max_position_embeddings": "long"}),
    ("hrm-text", "config.json", {"rope_parameters": []}),
    ("hrm-text", "config.json", {"embedding_scale": None, "initializer_range": None}),
    ("hrm-text", "config.json", {"rms_norm_eps": "small"}),
    ("encoder", "config.json", {"num_attention_heads": 0}),
    ("encoder", "config.json", {"hidden_size": 25}),
    ("encoder", "config.json", {"hidden_act": 7}),
    ("causal", "generation_config.json", {"eos_token_id": "</s>"}),
    ("causal", "generation_config.json", {"eos_token_id": {"id": 1}}),
    ("causal", "generation_config.json", {"eos_token_id": [[1]]}),
    ("causal", "generation_config.json", {"eos_token_id": -3}),
    ("causal", "tokenizer_config.json", {"model_max_length": "long"}),
    ("encoder", "tokenizer_config.json", {"model_max_length": []}),
    ("implant", "starter_brain.json", {"max_seq_len": "long"}),
    ("implant", "starter_brain.json", {"q_head": 7}),
    ("brain", "brain.json", {"num_heads": 3, "arch": None}),
    ("causal-shards", "model.safetensors.index.json", {"weight_map": []}),
    ("causal-shards", "model.safetensors.index.json", {"weight_map": {"a": 7}}),
    (
        "causal-shards",
        "model.safetensors.index.json",
        {"weight_map": {"a": "../elsewhere.safetensors"}},
    ),
    ("hrm-text-shards", "model.safetensors.index.json", {"weight_map": {}}),
]


@pytest.mark.parametrize(("kind", "file", "fields"), WRONG_FIELDS)
def test_a_field_that_is_wrong(
    copied: Callable[[str], Path], kind: str, file: str, fields: dict[str, Any]
) -> None:
    """A field with a value that makes no sense is refused in a sentence."""
    path = copied(kind)
    update_json(path / file, fields)
    refusal(path)


QUANTIZATIONS = (
    "gptq",
    "awq",
    "fp8",
    "bitsandbytes",
    "compressed-tensors",
    "torchao",
    "mxfp4",
    "of-tomorrow",
)


@pytest.mark.parametrize("method", QUANTIZATIONS)
@pytest.mark.parametrize("kind", ["causal", "hrm-text", "encoder"])
def test_quantized_weights_are_refused_by_their_method(
    copied: Callable[[str], Path], kind: str, method: str
) -> None:
    """Quantized weights are refused with their method and the setting that helps."""
    path = copied(kind)
    quantization = {"quant_method": method, "bits": 4}
    update_json(path / "config.json", {"quantization_config": quantization})

    sentence = refusal(path)

    assert "config.json" in sentence
    assert method in sentence
    assert "int8" in sentence


def _reshaped(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = torch.zeros([size + 1 for size in tensors[name].shape])


def _not_numbers(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = torch.full_like(tensors[name], torch.nan)


def _whole_numbers(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name].to(torch.int8)


def _eight_bits(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def _without(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


TENSOR_DAMAGES = (_reshaped, _not_numbers, _whole_numbers, _eight_bits, _without)
TENSORS = {
    "causal": "model.layers.0.mlp.down_proj.weight",
    "hrm-text": "model.L_module.layers.0.mlp.down_proj.weight",
    "brain": "inner.H_level.layers.0.self_attn.o_proj.weight",
    "encoder": "encoder.layer.0.attention.self.query.weight",
    "classifier": "bert.encoder.layer.0.attention.self.query.weight",
}


@pytest.mark.parametrize("damage", TENSOR_DAMAGES)
@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_that_is_wrong(
    copied: Callable[[str], Path], kind: str, damage: Callable[[dict[str, torch.Tensor], str], None]
) -> None:
    """A damaged tensor is refused by name.

    NaN shows in a trial forward, which cannot name the tensor.
    """
    path = copied(kind)
    [file] = path.glob("*.safetensors")
    tensors = load_file(file)
    damage(tensors, TENSORS[kind])
    save_file(tensors, file, metadata={"format": "pt"})

    sentence = refusal(path)

    if damage is not _not_numbers:
        assert TENSORS[kind].removeprefix("bert.") in sentence


@pytest.mark.parametrize("kind", ["causal", "causal-shards", "encoder"])
def test_more_layers_than_any_files_hold(copied: Callable[[str], Path], kind: str) -> None:
    """A million layers are refused before any is built: that would take hours, and all memory."""
    path = copied(kind)
    update_json(path / "config.json", {"num_hidden_layers": 1_000_000})
    assert "config.json" in refusal(path)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_q_head_that_is_not_of_numbers(copied: Callable[[str], Path], name: str) -> None:
    """A q head with NaN in it is refused with the name of the tensor."""
    path = copied("implant")
    head = {"weight": torch.ones(2, 32), "bias": torch.zeros(2)}
    head[name][1] = torch.nan
    torch.save(head, path / "head.pt")
    assert f"head.pt holds numbers that are not finite, in {name}" in refusal(path)


def test_weights_of_other_programs_and_adapters(copied: Callable[[str], Path]) -> None:
    """A PEFT adapter is refused, with a model's config beside it and without."""
    path = copied("causal")
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert "adapter_config.json" in refusal(path)

    (path / "config.json").unlink()
    assert "PEFT adapter" in refusal(path)


def test_weights_only_of_another_program(copied: Callable[[str], Path]) -> None:
    """GGUF weights are refused by name."""
    path = copied("causal")
    (path / "model.safetensors").rename(path / "model.gguf")
    assert "weights only in model.gguf" in refusal(path)

    # They are often handed on without a config.
    (path / "config.json").unlink()
    assert "weights only in model.gguf" in refusal(path)


@pytest.mark.parametrize(
    "template", ["{% if %}", "{{ 1/0 }}", "{{ messages + 1 }}", "{{ messages.x.y }}"]
)
@pytest.mark.parametrize("kind", ["causal", "hrm-text", "encoder"])
def test_a_chat_template_that_cannot_work(
    copied: Callable[[str], Path], kind: str, template: str
) -> None:
    """A chat template that does not parse, or fails on any dialogue, is refused."""
    path = copied(kind)
    (path / "chat_template.jinja").write_text(template)
    assert "chat template" in refusal(path)


@pytest.mark.parametrize("kind", ["causal", "hrm-text", "encoder"])
def test_a_file_of_the_directory_names_it(whole: Whole, kind: str) -> None:
    """The path of a model's config loads the model."""
    assert load(whole(kind) / "config.json") == load(whole(kind))


@pytest.fixture
def open_root() -> Iterator[Path]:
    """Make a directory that other users may look into, as pytest's own is not."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    yield root
    shutil.rmtree(root)


@pytest.mark.parametrize("name", ["", "config.json", "model.safetensors", "tokenizer.json"])
def test_what_may_not_be_read(whole: Whole, open_root: Path, name: str) -> None:
    """A file that may not be read is refused with the permission that is missing."""
    path = Path(shutil.copytree(whole("causal"), open_root / "model"))
    for file in path.iterdir():
        file.chmod(0o644)
    (path / name).chmod(0)

    # Root may read everything, so it becomes "nobody" for the time.
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        sentence = refusal(path)
    finally:
        if user == 0:
            os.seteuid(user)
        path.chmod(0o755)

    assert "let the user that runs the worker read it" in sentence
    assert name in sentence


def test_a_bug_of_ours_stays_a_traceback(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of our own code is raised as it is, not turned into a sentence."""

    def broken(*_: object, **__: object) -> None:
        raise AttributeError("a slip of ours")

    monkeypatch.setattr(causal, "prepare", broken)
    with pytest.raises(AttributeError, match="a slip of ours"):
        load(whole("causal"))


@pytest.mark.parametrize("kind", ["causal", "hrm-text", "encoder"])
def test_a_tokenizer_whose_reader_panics(copied: Callable[[str], Path], kind: str) -> None:
    """A panic in the tokenizer's Rust code is refused in a sentence.

    It is no Exception, and must end neither a start with a traceback nor a worker that loads again.
    """
    path = copied(kind)
    normalizer = {"type": "Precompiled", "precompiled_charsmap": ""}
    update_json(path / "tokenizer.json", {"normalizer": normalizer})

    sentence = refusal(path)

    assert "The tokenizer in" in sentence
    assert "PanicException" in sentence


def test_a_lack_of_memory_is_told_as_one(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed allocation is refused as a model that does not fit."""

    def lacking(*_: object, **__: object) -> None:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 64000000000 bytes."
        )

    monkeypatch.setattr(causal, "checked_net", lacking)
    assert "does not fit into memory" in refusal(whole("causal"))


def test_what_is_not_obeyed_is_said(
    copied: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Files and fields that are not obeyed are logged and listed. The eos ids are obeyed."""
    path = copied("causal")
    options = {"eos_token_id": [3, 5], "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    (path / "generation_config.json").write_text(json.dumps(options))
    (path / "preprocessor_config.json").write_text("{}")

    model = load_model(path)

    assert sorted(model.not_obeyed) == ["generation_config.json", "preprocessor_config.json"]
    assert "temperature 0.6, top_p 0.9" in model.not_obeyed["generation_config.json"]
    assert len(fields_of(caplog, "file not obeyed")) == 2
    assert model.runner.eos_ids >= {3, 5}
