"""Checks of a Hugging Face directory's files before a loader reads them.

Files that cannot be served are refused by name. transformers reports damaged files in many ways,
from an `OSError` to an `AttributeError`, and often does not say which file it was.
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
TOKENIZER_CONFIG = "tokenizer_config.json"
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
    TOKENIZER_CONFIG,
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
    """`model.safetensors.index.json`, which names the shard of each tensor."""

    weight_map: dict[str, str]


class _SentenceConfig(msgspec.Struct):
    """Fields of `config_sentence_transformers.json` that tell rerankers from other models."""

    model_type: str | None = None
    activation_fn: str | None = None

    @property
    def is_reranker(self) -> bool:
        return self.model_type == "CrossEncoder"


class GenerationDefaults(msgspec.Struct):
    """Fields of `generation_config.json` about sampling and the end of a response."""

    eos_token_id: int | list[int] | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def check_directory(path: Path) -> dict[str, Any]:
    """Check the weights and the `config.json` of a directory. Return the latter.

    Raise ModelFormatError for damaged files, quantized weights and adapters.
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
    """Return the directory of a model that is named by its directory, or by a file in it."""
    if path.is_file():
        return path.parent
    return path


def is_there(file: Path) -> bool:
    """Return whether a file, a directory or a link of this name exists, even a broken link."""
    return os.path.lexists(file)


def is_sentence_directory(path: Path) -> bool:
    """Return whether a directory has modules behind its network that make vectors.

    Raise ModelFormatError for damaged files.
    """
    has_modules = is_there(path / "modules.json") or is_there(path / "1_Pooling")
    if not is_there(path / CONFIG) or not has_modules:
        return False
    # sentence-transformers writes `modules.json` for a reranker, too, but its network alone is
    # already a classifier.
    return not _read_sentence_config(path).is_reranker


def _read_sentence_config(path: Path) -> _SentenceConfig:
    file = path / SENTENCE_CONFIG
    if not is_there(file):
        return _SentenceConfig()
    return converted(read_json_object(file), _SentenceConfig, file)


def read_generation_defaults(path: Path) -> GenerationDefaults:
    """Return the fields of a directory's `generation_config.json`, all None without that file.

    Raise ModelFormatError for a damaged file.
    """
    file = path / GENERATION_CONFIG
    if not is_there(file):
        return GenerationDefaults()
    defaults = converted(read_json_object(file), GenerationDefaults, file)
    declared = defaults.eos_token_id
    eos_ids = declared if isinstance(declared, list) else [declared]
    for token in eos_ids:
        if token is not None and token < 0:
            raise ModelFormatError(
                f"{file} says eos_token_id is {declared}, which is no token id; correct it."
            )
    return defaults


def not_obeyed(path: Path) -> dict[str, str]:
    """Return the files of a directory that are not obeyed, in whole or in part, with the reasons.

    Raise ModelFormatError for damaged files.
    """
    reasons: dict[str, str] = {}
    defaults = msgspec.structs.asdict(read_generation_defaults(path))
    ignored = [f"{name} {defaults[name]}" for name in _SAMPLING if defaults[name] is not None]
    if ignored:
        reasons[GENERATION_CONFIG] = (
            f"requests say how to sample, and the dialects' defaults: not {', '.join(ignored)}"
        )

    sentence = _read_sentence_config(path)
    if sentence.is_reranker and sentence.activation_fn is not None:
        rule = "scores of labels are by transformers' rule (a single one through a sigmoid)"
        reasons[SENTENCE_CONFIG] = f"{rule}: not by {sentence.activation_fn}"

    for name in _PROCESSORS:
        if is_there(path / name):
            reasons[name] = "texts alone are read"
    if is_there(path / _MORE_TEMPLATES):
        reasons[_MORE_TEMPLATES] = (
            "only the default chat template is used; name another file as chat_template"
        )
    if is_there(path / CONFIG) and "auto_map" in read_json_object(path / CONFIG):
        reasons[CONFIG] = "code of the model's own (auto_map) is not run"
    return reasons


def check_weights(path: Path) -> None:
    """Raise ModelFormatError for a directory without weights, or with damaged safetensors files."""
    files = weight_files(path)
    for file in files:
        check_safetensors(file)
    if files or any(is_there(path / name) for name in _TORCH_FILES):
        return
    check_weights_format(path)
    raise ModelFormatError(
        f"{path} has no weights: neither {SINGLE} nor {INDEX} is there; copy them again."
    )


def check_weights_format(path: Path) -> None:
    """Raise ModelFormatError for a directory that has weights only in a format not served.

    Call this for a directory without weights in a format that is served.
    """
    foreign = [file.name for file in _matches(path, _FOREIGN_FILES)]
    if foreign:
        raise ModelFormatError(
            f"{path} has weights only in {foreign[0]}, a format not served: convert them to "
            "safetensors (load them with transformers, then save_pretrained)."
        )


def weight_files(path: Path) -> list[Path]:
    """Return the safetensors files of a directory, if there are any.

    They are the shards that the index names, or else `model.safetensors`. Raise ModelFormatError
    for an index that cannot be used.
    """
    file = path / INDEX
    if not is_there(file):
        if is_there(path / SINGLE):
            return [path / SINGLE]
        return []

    index = converted(read_json_object(file), _Index, file)
    shards = sorted(set(index.weight_map.values()))
    if not shards:
        raise ModelFormatError(f"{file} names no file of weights; {COPY_AGAIN}.")
    for shard in shards:
        if shard != Path(shard).name:
            raise ModelFormatError(
                f"{file} names {shard!r}, which is no file beside it; {COPY_AGAIN}."
            )
        if not is_there(path / shard):
            raise ModelFormatError(
                f"{path / shard}, which {INDEX} names, is not there; copy it again."
            )
    return [path / shard for shard in shards]


def check_tokenizer(path: Path) -> None:
    """Raise ModelFormatError for a directory without a tokenizer, or with a damaged one."""
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
    """Raise ModelFormatError for a config that declares quantized weights.

    They may be declared inside `text_config`, too.
    """
    for section in (config, config.get("text_config")):
        if not isinstance(section, dict):
            continue
        for name in _QUANTIZATION_FIELDS:
            declared = section.get(name)
            if not declared:
                continue
            how = f"({name})"
            if isinstance(declared, dict) and declared.get("quant_method"):
                how = f"by {declared['quant_method']}"
            raise ModelFormatError(
                f"{file} says that the weights are quantized {how}, not served: {_UNQUANTIZED}."
            )


def check_safetensors(file: Path) -> None:
    """Raise ModelFormatError for a damaged file, or one with quantized tensors."""
    # Open the file first: safetensors reports any file that cannot be opened as a missing one.
    try:
        file.open("rb").close()
    except OSError as error:
        raise unusable(file, error) from error

    # Opening checks the header and the file's size.
    dtypes = {}
    with reading(file), safe_open(file, framework="pt") as tensors:
        names = tensors.keys()
        for name in names:
            dtypes[name] = tensors.get_slice(name).get_dtype()

    # Buffers that count may be integers. Weights must be floating point.
    for name, dtype in dtypes.items():
        is_buffer = dtype in _COUNTING_DTYPES and not name.endswith("weight")
        if dtype not in _PLAIN_DTYPES and not is_buffer:
            raise ModelFormatError(
                f"{file} holds {name} in {dtype}, quantized, which is not served: {_UNQUANTIZED}."
            )
