"""Sentence-embedding directories: their vectors, and the errors that name what is not known.

The oracles are golden vectors, which `tests/fixtures/worker/sentence_models.py` writes, and
sentence-transformers itself where it is installed.
"""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from scripts.train.special_tokens import byte_tokenizer
from shared.messages import Classify, Embed
from shared.settings.settings import ModelEntry, Settings, SettingsError
from shared.tasks.vectors import unpack
from tests.fixtures.worker.sentence_models import (
    CASES,
    DENSE,
    GOLDEN,
    HIDDEN,
    TANH,
    TEXTS,
    own_vectors,
    write_sentence_model,
)
from tests.fixtures.worker.stepping import classify_all, embed_all
from worker.engine.engine import Engine
from worker.engine.request import SequenceWork
from worker.host.loading import LoadedModel, load_models
from worker.runners.registry import detect

GOLDEN_VECTORS = json.loads(GOLDEN.read_text())
FOUND = {
    "cls": "pooled by cls",
    "several": "pooled by cls + mean + lasttoken",
    "new spelling": "pooled by mean + cls",
    "dense, normalized": "pooled by cls + max, dense 48 to 7 (Identity), of length 1",
    "prompt": "pooled by mean, prompt 'Find: ' before every text",
    "short": "pooled by mean, texts of at most 16 tokens",
}


def load(path: Path, device: str = "cpu") -> LoadedModel:
    settings = Settings(
        models=(ModelEntry(id="m", path=str(path)),),
        max_batch_size=3,
        device=device,
        dtype="float32",
        threads=1,
    )
    [model] = load_models(settings)
    return model


def vectors_of(model: LoadedModel, *, normalize: bool = False) -> list[torch.Tensor]:
    tasks = [Embed(text, normalize=normalize) for text in TEXTS]
    return [torch.tensor(unpack(vector)) for vector in embed_all(model.runner, tasks)]


@pytest.mark.parametrize("case", CASES)
def test_vectors_are_those_of_sentence_transformers(tmp_path: Path, case: str, device: str) -> None:
    """A model has the vectors of sentence-transformers, and says how it pools."""
    path = write_sentence_model(tmp_path / "model", case)
    assert detect(str(path)) == "encoder"
    model = load(path, device)
    assert FOUND.get(case, "pooled by") in model.info.found

    vectors = vectors_of(model)

    check(vectors, GOLDEN_VECTORS[case])
    if find_spec("sentence_transformers") is not None:
        check(vectors, own_vectors(path))


def check(vectors: list[torch.Tensor], expected: list[list[float]]) -> None:
    for vector, numbers in zip(vectors, expected, strict=True):
        assert len(vector) == len(numbers)
        assert vector == pytest.approx(torch.tensor(numbers), rel=1e-3, abs=2e-4)


def test_the_cases_differ() -> None:
    """No case has the vectors of another, which could then be served for it."""
    firsts = [tuple(vectors[1]) for vectors in GOLDEN_VECTORS.values()]
    assert len(set(firsts)) == len(firsts)


def test_a_request_may_ask_for_length_one(tmp_path: Path) -> None:
    """A request that asks for it gets vectors of length 1."""
    model = load(write_sentence_model(tmp_path / "model", "max"))

    plain = vectors_of(model)
    normalized = vectors_of(model, normalize=True)

    for vector, plain_vector in zip(normalized, plain, strict=True):
        assert vector == pytest.approx(plain_vector / plain_vector.norm(), abs=1e-5)


@pytest.mark.parametrize("case", ["cls", "prompt"])
def test_a_text_takes_one_step(tmp_path: Path, case: str) -> None:
    """However many tokens it has: its vector is finished when they have been read once."""
    model = load(write_sentence_model(tmp_path / "model", case))
    engine = Engine(model.runner, [].extend)
    for number, text in enumerate(TEXTS):
        engine.submit(SequenceWork(str(number), model.runner.encode(Embed(text)), None))
    num_steps = 0
    while engine.has_work:
        engine.step()
        num_steps += 1
    # Three texts share a step.
    assert num_steps == -(-len(TEXTS) // 3)


def test_a_pooling_directory_alone_is_obeyed(tmp_path: Path) -> None:
    """A pooling directory without a `modules.json` decides the pooling, too."""
    path = write_sentence_model(tmp_path / "model", "cls")
    (path / "modules.json").unlink()

    check(vectors_of(load(path)), GOLDEN_VECTORS["cls"])


Change = Callable[[Path], None]
"""Damages a model's directory."""


def written(name: str, content: Any) -> Change:
    def change(path: Path) -> None:
        (path / name).write_text(json.dumps(content))

    return change


def lost(name: str) -> Change:
    return lambda path: (path / name).unlink()


HEAD = [{"type": "a.Transformer"}, {"type": "a.Pooling", "path": "1_Pooling"}]
REFUSED: list[tuple[Change, str]] = [
    (written("1_Pooling/config.json", []), "1_Pooling/config.json is not a JSON object"),
    (lost("1_Pooling/config.json"), "1_Pooling/config.json"),
    (written("1_Pooling/config.json", {"pooling_mode": "median"}), "median"),
    (written("1_Pooling/config.json", {"word_embedding_dimension": 768}), "768 wide"),
    (written("modules.json", {}), "modules.json"),
    (written("modules.json", []), "modules.json"),
    (
        written("modules.json", [{"type": "a.Transformer", "path": ""}]),
        "nothing behind the network",
    ),
    (written("modules.json", [*HEAD, {"type": "b.LSTM"}]), "LSTM"),
    (
        written("modules.json", [{"type": "a.Router"}, {"type": "a.Pooling", "path": "1_Pooling"}]),
        "modules.json",
    ),
    (written("2_Dense/config.json", DENSE | {"activation_function": "mine.Snake"}), "mine.Snake"),
    (written("2_Dense/config.json", DENSE | {"in_features": 9}), "takes 9 numbers"),
    (
        written("2_Dense/config.json", DENSE | {"activation_function": TANH, "out_features": 8}),
        "linear.weight",
    ),
    (lost("2_Dense/model.safetensors"), "2_Dense"),
    (
        written(
            "config_sentence_transformers.json", {"default_prompt_name": "query", "prompts": {}}
        ),
        "query",
    ),
    (written("sentence_bert_config.json", {"max_seq_length": "long"}), "max_seq_length"),
]


@pytest.mark.parametrize(("change", "named"), REFUSED)
def test_what_is_not_known_or_damaged_is_refused(
    tmp_path: Path, change: Change, named: str
) -> None:
    """A model with a part that is damaged or not known is refused, and the error names the part."""
    path = write_sentence_model(tmp_path / "model", "dense")
    change(path)

    with pytest.raises(SettingsError, match=named):
        load(path)


def test_prompts_without_a_default_are_told_of(tmp_path: Path) -> None:
    """A model with prompts but no default one leaves them to the callers, and says so."""
    path = write_sentence_model(tmp_path / "model", "mean")
    config = {"prompts": {"query": "q: ", "passage": "p: "}}
    (path / "config_sentence_transformers.json").write_text(json.dumps(config))

    model = load(path)

    assert "prompts (query, passage) left to callers" in model.info.found
    assert len(vectors_of(model)[0]) == HIDDEN


def test_a_reranker_is_its_network(tmp_path: Path) -> None:
    """A reranker has its classifier's own score.

    sentence-transformers 6.2 writes one with modules and without pooling.
    """
    path = tmp_path / "model"
    torch.manual_seed(5)
    bert_config = BertConfig(
        vocab_size=264,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
        num_labels=1,
    )
    network = BertForSequenceClassification(bert_config).eval()
    network.save_pretrained(path)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(path)

    identity = "torch.nn.modules.linear.Identity"
    transformer = {
        "idx": 0,
        "name": "0",
        "path": "",
        "type": "sentence_transformers.base.modules.transformer.Transformer",
    }
    transformer_config = {
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
        "module_output_name": "scores",
    }
    config = {"model_type": "CrossEncoder", "activation_fn": identity}
    (path / "modules.json").write_text(json.dumps([transformer]))
    (path / "sentence_bert_config.json").write_text(json.dumps(transformer_config))
    (path / "config_sentence_transformers.json").write_text(json.dumps(config))

    assert detect(str(path)) == "encoder"
    model = load(path)
    assert "pooled by" not in model.info.found
    assert identity in model.not_obeyed["config_sentence_transformers.json"]

    [scores] = classify_all(model.runner, [Classify(TEXTS[1])])

    ids = torch.tensor([tokenizer(TEXTS[1])["input_ids"]])
    with torch.no_grad():
        expected = float(network(ids).logits.sigmoid())
    assert list(scores.values()) == pytest.approx([expected], abs=1e-5)
