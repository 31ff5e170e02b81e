"""Whisper in CTranslate2's format, written as a directory of transformers with float16 weights.

The file `model.bin` is that of CTranslate2's `ModelSpec` of binary version 6, read here without
CTranslate2. Numbers are little-endian, and matrices are [out, in] as in torch.
"""

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

BINARY_VERSION = 6
SPEC = "WhisperSpec"
_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
"""The types of numbers, at the places that stand for them in the file."""
_END = "<|endoftext|>"
_LANGUAGES_BEGIN_AFTER = "<|startoftranscript|>"
_LANGUAGES_END_BEFORE = "<|translate|>"

_MULTILINGUAL_VOCABULARY = 51_865
"""The smallest vocabulary of a network for several languages, by OpenAI's own rule.

The tokenizers of networks for English have the tokens of languages, too.
"""

Variables = dict[str, NDArray[Any]]


def convert(package: Path, target: Path) -> None:
    """Write the network, its generation config and its processor.

    `package` holds a `model.bin`, whole or in parts, and its `config.json` and `tokenizer.json`.
    Raise ValueError if it does not, or if the file has another format or tensors that are no
    Whisper's.
    """
    files = sorted(package.glob("**/tokenizer.json"))
    if len(files) != 1:
        raise ValueError(f"expected one tokenizer.json, found {len(files)}")
    folder = files[0].parent
    variables = read_variables(_weights_file(package))
    tokenizer = WhisperTokenizer(
        tokenizer_file=str(folder / "tokenizer.json"),
        unk_token=_END,
        bos_token=_END,
        eos_token=_END,
        pad_token=_END,
        additional_special_tokens=_marks_of(folder / "tokenizer.json"),
    )
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))

    config = config_of(variables, tokenizer)
    model = WhisperForConditionalGeneration(config)
    loaded = model.load_state_dict(weights_of(variables, config), strict=False)
    # The output layer is the table of embeddings.
    missing = set(loaded.missing_keys) - {"proj_out.weight"}
    if missing or loaded.unexpected_keys:
        raise ValueError(f"the tensors are no Whisper's: {sorted(missing)[:5]}")
    model.tie_weights()
    model.generation_config = generation_config_of(settings, config, tokenizer)

    nn.Module.to(model, torch.float16)
    model.save_pretrained(target)
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    WhisperProcessor(extractor, tokenizer).save_pretrained(target)


def _weights_file(package: Path) -> Path:
    """Return the `model.bin` of a package, which is put together if it lies there in parts."""
    files = sorted(package.glob("**/model.bin"))
    parts = sorted(package.glob("**/model.bin.part*"), key=lambda part: part.name)
    if parts and not files:
        files = [package / "model.bin"]
        with files[0].open("wb") as whole:
            for part in parts:
                whole.write(part.read_bytes())
    if len(files) != 1:
        raise ValueError(f"expected one model.bin, found {len(files)}")
    return files[0]


def read_variables(path: Path) -> Variables:
    """Return the tensors of a `model.bin` by name, and those of its aliases.

    Raise ValueError for a file of another format, or one that is cut off.
    """
    with path.open("rb") as file:
        version = _number(file, "I")
        if version != BINARY_VERSION:
            raise ValueError(f"expected version {BINARY_VERSION} of model.bin, got {version}")
        spec = _text(file)
        if spec != SPEC:
            raise ValueError(f"expected the tensors of {SPEC}, got those of {spec}")
        _number(file, "I")  # the revision of the spec

        variables: Variables = {}
        for _ in range(_number(file, "I")):
            name = _text(file)
            rank = _number(file, "B")
            shape = [_number(file, "I") for _ in range(rank)]
            dtype = _DTYPES[_number(file, "B")]
            num_bytes = _number(file, "I")
            numbers = np.frombuffer(_read(file, num_bytes), dtype)
            variables[name] = numbers.reshape(shape)

        for _ in range(_number(file, "I")):
            alias = _text(file)
            variables[alias] = variables[_text(file)]
    return variables


def _read(file: BinaryIO, num_bytes: int) -> bytes:
    data = file.read(num_bytes)
    if len(data) != num_bytes:
        raise ValueError("model.bin is cut off")
    return data


def _number(file: BinaryIO, code: str) -> int:
    """Return a number; `code` is its format in `struct`."""
    [number] = struct.unpack(f"<{code}", _read(file, struct.calcsize(code)))
    return int(number)


def _text(file: BinaryIO) -> str:
    length = _number(file, "H")
    return _read(file, length).rstrip(b"\0").decode()


def _marks_of(file: Path) -> list[str]:
    """Return Whisper's own tokens, all but its times, which are no special tokens."""
    added = json.loads(file.read_text(encoding="utf-8"))["added_tokens"]
    return [token["content"] for token in added if token["special"]]


def _id_of(tokenizer: WhisperTokenizer, token: str) -> int:
    number: Any = tokenizer.convert_tokens_to_ids(token)
    return int(number)


def config_of(variables: Variables, tokenizer: WhisperTokenizer) -> WhisperConfig:
    """Return the config of a network with these tensors."""
    vocabulary, width = variables["decoder/embeddings/weight"].shape
    end = _id_of(tokenizer, _END)
    encoder_heads = int(variables["encoder/num_heads"])
    decoder_heads = int(variables["decoder/num_heads"])
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=_count_layers(variables, "encoder"),
        decoder_layers=_count_layers(variables, "decoder"),
        encoder_attention_heads=encoder_heads,
        decoder_attention_heads=decoder_heads,
        encoder_ffn_dim=len(variables["encoder/layer_0/ffn/linear_0/weight"]),
        decoder_ffn_dim=len(variables["decoder/layer_0/ffn/linear_0/weight"]),
        num_mel_bins=variables["encoder/conv1/weight"].shape[1],
        max_source_positions=len(variables["encoder/position_encodings/encodings"]),
        max_target_positions=len(variables["decoder/position_encodings/encodings"]),
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=_id_of(tokenizer, "<|startoftranscript|>"),
    )


def _count_layers(variables: Variables, side: str) -> int:
    layers = {name.split("/")[1] for name in variables if name.startswith(f"{side}/layer_")}
    # A norm behind the last layer has a similar name.
    return len(layers - {"layer_norm"})


def weights_of(variables: Variables, config: WhisperConfig) -> dict[str, Tensor]:
    """Return the tensors under the names that transformers has for them."""
    weights = {
        "model.encoder.embed_positions.weight": variables["encoder/position_encodings/encodings"],
        "model.decoder.embed_positions.weight": variables["decoder/position_encodings/encodings"],
        "model.decoder.embed_tokens.weight": variables["decoder/embeddings/weight"],
    }
    for name in ("conv1", "conv2"):
        weights |= _layer(variables, f"encoder/{name}", f"model.encoder.{name}")
    for side in ("encoder", "decoder"):
        weights |= _norm(variables, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for number in range(_count_layers(variables, side)):
            source = f"{side}/layer_{number}"
            name = f"model.{side}.layers.{number}"
            weights |= _self_attention(variables, source, name)
            if side == "decoder":
                weights |= _encoder_attention(variables, source, name)
            weights |= _layer(variables, f"{source}/ffn/linear_0", f"{name}.fc1")
            weights |= _layer(variables, f"{source}/ffn/linear_1", f"{name}.fc2")
            weights |= _norm(variables, f"{source}/ffn/layer_norm", f"{name}.final_layer_norm")
    return {name: torch.from_numpy(numbers.astype(np.float32)) for name, numbers in weights.items()}


def _layer(variables: Variables, source: str, name: str) -> Variables:
    return {
        f"{name}.weight": variables[f"{source}/weight"],
        f"{name}.bias": variables[f"{source}/bias"],
    }


def _norm(variables: Variables, source: str, name: str) -> Variables:
    return {
        f"{name}.weight": variables[f"{source}/gamma"],
        f"{name}.bias": variables[f"{source}/beta"],
    }


def _self_attention(variables: Variables, source: str, name: str) -> Variables:
    attention = f"{source}/self_attention"
    weights = _norm(variables, f"{attention}/layer_norm", f"{name}.self_attn_layer_norm")
    weights |= _parts(variables, f"{attention}/linear_0", f"{name}.self_attn", "qkv")
    return weights | _layer(variables, f"{attention}/linear_1", f"{name}.self_attn.out_proj")


def _encoder_attention(variables: Variables, source: str, name: str) -> Variables:
    attention = f"{source}/attention"
    weights = _norm(variables, f"{attention}/layer_norm", f"{name}.encoder_attn_layer_norm")
    weights |= _layer(variables, f"{attention}/linear_0", f"{name}.encoder_attn.q_proj")
    weights |= _parts(variables, f"{attention}/linear_1", f"{name}.encoder_attn", "kv")
    return weights | _layer(variables, f"{attention}/linear_2", f"{name}.encoder_attn.out_proj")


def _parts(variables: Variables, source: str, name: str, parts: str) -> Variables:
    """Return the queries', keys' and values' parts of a layer that computes several at once."""
    weights = {}
    matrices = np.split(variables[f"{source}/weight"], len(parts))
    biases = np.split(variables[f"{source}/bias"], len(parts))
    for part, matrix, bias in zip(parts, matrices, biases, strict=True):
        weights[f"{name}.{part}_proj.weight"] = matrix
        # Whisper's keys have no bias: the one in the file is zero.
        if part != "k":
            weights[f"{name}.{part}_proj.bias"] = bias
    return weights


def generation_config_of(
    settings: dict[str, Any], config: WhisperConfig, tokenizer: WhisperTokenizer
) -> GenerationConfig:
    """Return how the network writes: `settings` are those of CTranslate2's config.json."""
    is_multilingual = config.vocab_size >= _MULTILINGUAL_VOCABULARY
    values: dict[str, Any] = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "decoder_start_token_id": config.decoder_start_token_id,
        "max_length": config.max_target_positions,
        "suppress_tokens": settings["suppress_ids"],
        "begin_suppress_tokens": settings["suppress_ids_begin"],
        "alignment_heads": settings["alignment_heads"],
        "no_timestamps_token_id": _id_of(tokenizer, "<|notimestamps|>"),
        "prev_sot_token_id": _id_of(tokenizer, "<|startofprev|>"),
        "is_multilingual": is_multilingual,
    }
    if is_multilingual:
        values["lang_to_id"] = _languages_of(tokenizer)
        values["task_to_id"] = {
            task: _id_of(tokenizer, f"<|{task}|>") for task in ("transcribe", "translate")
        }
    generation = GenerationConfig(**values)
    # Else the fields that only Whisper has are lost when the directory is read.
    generation._from_model_config = False
    return generation


def _languages_of(tokenizer: WhisperTokenizer) -> dict[str, int]:
    """Return the tokens of languages and their ids, which stand between two other tokens."""
    first = _id_of(tokenizer, _LANGUAGES_BEGIN_AFTER) + 1
    last = _id_of(tokenizer, _LANGUAGES_END_BEFORE)
    ids = list(range(first, last))
    return dict(zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True))
