"""Looks at the files of a Hugging Face directory before a loader does, and refuses what cannot be
served by name.

transformers tells of damaged files in many ways, from an `OSError` to an `AttributeError`, and
often not which file it was.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from safetensors import safe_open

from worker.models.errors import ModelFormatError
from worker.models.reading import COPY_AGAIN, converted, read_json_object, reading, unusable

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
SENTENCE_CONFIG = "config_sentence_transformers.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_PROCESSORS = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
_MORE_TEMPLATES = "additional_chat_templates"
_TORCH_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_FOREIGN_FILES = ("*.gguf", "tf_model*.h5", "flax_model*.msgpack", "*.onnx", "consolidated*.pth")
_TOKENIZER_JSON = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "*.model",
)
_QUANTIZATION_FIELDS = ("quantization_config", "compression_config")
_PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")
_COUNTING_DTYPES = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
_UNQUANTIZED = (
    "serve the original weights, with `quantize: int8` where a CPU is to make the most of them"
)


class _Index(msgspec.Struct):
    """Which shard holds which tensor."""

    weight_map: dict[str, str]


class _SentenceConfig(msgspec.Struct):
    """What `config_sentence_transformers.json` says a directory is for."""

    model_type: str | None = None
    activation_fn: str | None = None

    @property
    def is_reranker(self) -> bool:
        return self.model_type == "CrossEncoder"


class GenerationDefaults(msgspec.Struct):
    """What `generation_config.json` says of sampling."""

    eos_token_id: int | list[int] | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def check_directory(path: Path) -> dict[str, Any]:
    """`config.json` of a directory in which every file is whole.

    Raises ModelFormatError for damaged files, quantized weights and adapters.
    """
    if is_there(path / ADAPTER_CONFIG):
        raise ModelFormatError(
            f"{path / ADAPTER_CONFIG} makes this a PEFT adapter, which is not served: merge it "
            "into its base model (merge_and_unload, then save_pretrained); if that is done, "
            "remove the file."
        )
    config = read_json_object(path / CONFIG)
    _refuse_quantized(config, path / CONFIG)
    check_weights(path)
    return config


def directory_of(path: Path) -> Path:
    """The directory of a model that is named by it, or by a file in it."""
    return path.parent if path.is_file() else path


def is_there(file: Path) -> bool:
    """Whether a directory has an entry of this name, of whatever kind; a broken link is one."""
    return os.path.lexists(file)


def is_sentence_directory(path: Path) -> bool:
    """Whether a directory has modules behind its network that make vectors. Raises
    ModelFormatError.

    sentence-transformers writes `modules.json` for a reranker too, of which the network alone is a
    classifier.
    """
    has_modules = is_there(path / "modules.json") or is_there(path / "1_Pooling")
    return is_there(path / CONFIG) and has_modules and not _read_sentence_config(path).is_reranker


def _read_sentence_config(path: Path) -> _SentenceConfig:
    file = path / SENTENCE_CONFIG
    if not is_there(file):
        return _SentenceConfig()
    return converted(read_json_object(file), _SentenceConfig, file)


def read_generation_defaults(path: Path) -> GenerationDefaults:
    """What a directory's `generation_config.json` says; nothing where there is none. Raises
    ModelFormatError."""
    file = path / GENERATION_CONFIG
    if not is_there(file):
        return GenerationDefaults()
    defaults = converted(read_json_object(file), GenerationDefaults, file)
    ends = defaults.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    if any(end is not None and end < 0 for end in listed):
        raise ModelFormatError(
            f"{file} says eos_token_id is {ends}, which is no token id; correct it."
        )
    return defaults


def not_obeyed(path: Path) -> dict[str, str]:
    """Files of a directory whose wishes are not carried out, each with what becomes of them.

    Raises ModelFormatError.
    """
    found: dict[str, str] = {}
    defaults = msgspec.structs.asdict(read_generation_defaults(path))
    asked = [f"{name} {defaults[name]}" for name in _SAMPLING if defaults[name] is not None]
    if asked:
        found[GENERATION_CONFIG] = (
            f"requests say how to sample, and the dialects' defaults: not {', '.join(asked)}"
        )
    sentence = _read_sentence_config(path)
    if sentence.is_reranker and sentence.activation_fn is not None:
        rule = "scores of labels are by transformers' rule (a single one through a sigmoid)"
        found[SENTENCE_CONFIG] = f"{rule}: not by {sentence.activation_fn}"
    for name in _PROCESSORS:
        if is_there(path / name):
            found[name] = "texts alone are read"
    if is_there(path / _MORE_TEMPLATES):
        found[_MORE_TEMPLATES] = (
            "only the default chat template is used; name another file as chat_template"
        )
    if is_there(path / CONFIG) and "auto_map" in read_json_object(path / CONFIG):
        found[CONFIG] = "code of the model's own (auto_map) is not run"
    return found


def check_weights(path: Path) -> None:
    """Refuse a directory whose safetensors files are not all there and whole. Raises
    ModelFormatError."""
    files = weight_files(path)
    for file in files:
        _check_safetensors(file)
    if files or any(is_there(path / name) for name in _TORCH_FILES):
        return
    check_weights_format(path)
    raise ModelFormatError(
        f"{path} has no weights: neither {SINGLE} nor {INDEX} is there; copy them again."
    )


def check_weights_format(path: Path) -> None:
    """Refuse weights of other programs in a directory that has none of ours. Raises
    ModelFormatError."""
    foreign = [file.name for pattern in _FOREIGN_FILES for file in path.glob(pattern)]
    if foreign:
        raise ModelFormatError(
            f"{path} has weights only in {foreign[0]}, a format not served: convert them to "
            "safetensors (load them with transformers, then save_pretrained)."
        )


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a directory: the one, or the shards that its index names; none where
    there is neither.

    Raises ModelFormatError for an index that cannot be used.
    """
    index = path / INDEX
    if not is_there(index):
        return [path / SINGLE] if is_there(path / SINGLE) else []
    shards = sorted(set(converted(read_json_object(index), _Index, index).weight_map.values()))
    if not shards:
        raise ModelFormatError(f"{index} names no file of weights; {COPY_AGAIN}.")
    for shard in shards:
        if shard != Path(shard).name:
            raise ModelFormatError(
                f"{index} names {shard!r}, which is no file beside it; {COPY_AGAIN}."
            )
        if not is_there(path / shard):
            raise ModelFormatError(
                f"{path / shard}, which {INDEX} names, is not there; copy it again."
            )
    return [path / shard for shard in shards]


def check_tokenizer(path: Path) -> None:
    """Refuse a directory without a tokenizer, or with damaged files of one. Raises
    ModelFormatError."""
    for name in _TOKENIZER_JSON:
        if is_there(path / name):
            read_json_object(path / name)
    if not any(_matches(path, _TOKENIZER_FILES)):
        raise ModelFormatError(
            f"{path} has no tokenizer (tokenizer.json and tokenizer_config.json): copy it there, "
            "or name its directory with --tokenizer-path."
        )


def _matches(path: Path, patterns: Iterable[str]) -> Iterable[Path]:
    for pattern in patterns:
        yield from path.glob(pattern)


def _refuse_quantized(config: dict[str, Any], file: Path) -> None:
    parts = [config, config.get("text_config")]
    for part in parts:
        if not isinstance(part, dict):
            continue
        for name in _QUANTIZATION_FIELDS:
            declared = part.get(name)
            if not declared:
                continue
            method = declared.get("quant_method") if isinstance(declared, dict) else None
            how = f"by {method}" if method else f"({name})"
            raise ModelFormatError(
                f"{file} says that the weights are quantized {how}, not served: {_UNQUANTIZED}."
            )


def _check_safetensors(file: Path) -> None:
    """Whether the header is valid and the tensors fill the file, which opening checks, and what
    they are."""
    try:
        file.open("rb").close()
    except OSError as error:  # safetensors tells of a file that is not there, whatever it is
        raise unusable(file, error) from error
    with reading(file), safe_open(file, framework="pt") as tensors:
        dtypes = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118  # no mapping
    for name, dtype in dtypes.items():
        is_buffer = dtype in _COUNTING_DTYPES and not name.endswith("weight")
        if dtype not in _PLAIN_DTYPES and not is_buffer:
            raise ModelFormatError(
                f"{file} holds {name} in {dtype}, quantized, which is not served: {_UNQUANTIZED}."
            )
