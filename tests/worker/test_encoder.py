"""Encoders and classifiers against transformers' own forward and pipeline."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    pipeline,
)

from shared.errors import ContextExceeded, InvalidRequest
from shared.messages import (
    Chat,
    Classify,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    Generate,
    Labelled,
    Sampling,
    Tokenize,
    Tokenized,
    Turn,
)
from shared.settings.settings import ModelEntry, Settings
from shared.tasks.vectors import unpack
from tests.fixtures.tiny_encoder import SHARED, SIZE, TEXTS, word_tokenizer, write
from tests.fixtures.worker.stepping import classify_all, embed_all, end_of, run
from worker.engine.runner import RunnerOptions
from worker.host.loading import load_models, warm_up
from worker.models.errors import ModelFormatError
from worker.runners.encoder import EncoderRunner
from worker.runners.registry import detect, load_runner

DISTILBERT: dict[str, Any] = {
    "vocab_size": SIZE,
    "dim": 24,
    "hidden_dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "max_position_embeddings": 34,
}
LABELS = {
    "id2label": {0: "bad", 1: "good", 2: "neither"},
    "label2id": {"bad": 0, "good": 1, "neither": 2},
}


def load(path: Path, **options: object) -> EncoderRunner:
    runner = load_runner("auto", RunnerOptions(path=str(path), **options))  # type: ignore[arg-type]
    assert isinstance(runner, EncoderRunner)
    return runner


def own_mean(model: PreTrainedModel, text: str) -> Tensor:
    with torch.no_grad():
        inputs = word_tokenizer()(text, return_tensors="pt", return_token_type_ids=False)
        return model.base_model(**inputs).last_hidden_state[0].mean(0)


FAMILIES: dict[str, tuple[Callable[[Any], PreTrainedModel], PretrainedConfig]] = {
    "bert": (BertModel, BertConfig(**SHARED)),
    "distilbert": (DistilBertModel, DistilBertConfig(**DISTILBERT)),
    "roberta": (RobertaModel, RobertaConfig(**SHARED)),
    "masked": (BertForMaskedLM, BertConfig(**SHARED)),
    "classifier": (BertForSequenceClassification, BertConfig(**SHARED, **LABELS)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_a_plain_forward(tmp_path: Path, family: str) -> None:
    """B55, D25: together, padded beside longer ones, and alone; whatever head was saved with the
    network."""
    model = write(tmp_path, *FAMILIES[family])
    assert detect(str(tmp_path)) == "encoder"
    runner = load(tmp_path, max_batch=3)
    tasks = [Embed(text, normalize=False) for text in TEXTS]
    for vector, [alone], text in zip(
        embed_all(runner, tasks), [embed_all(runner, [task]) for task in tasks], TEXTS, strict=True
    ):
        own = own_mean(model, text)
        assert len(own) == 24
        assert torch.tensor(unpack(vector)) == pytest.approx(own, rel=1e-4, abs=1e-5)
        assert torch.tensor(unpack(alone)) == pytest.approx(own, rel=1e-4, abs=1e-5)


PROBLEMS: dict[str, dict[str, Any]] = {
    "softmax": LABELS,
    "sigmoid": {**LABELS, "problem_type": "multi_label_classification"},
    "one": {"num_labels": 1},
    "regression": {"num_labels": 1, "problem_type": "regression"},
}


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_labels_are_those_of_transformers_pipeline(
    tmp_path: Path, family: str, problem: str
) -> None:
    """Batched, by problem type, likeliest first."""
    if family == "bert":
        write(tmp_path, BertForSequenceClassification, BertConfig(**SHARED, **PROBLEMS[problem]))
    else:
        write(
            tmp_path,
            DistilBertForSequenceClassification,
            DistilBertConfig(**DISTILBERT, **PROBLEMS[problem]),
        )
    own = pipeline(
        "text-classification",
        model=str(tmp_path),
        tokenizer=AutoTokenizer.from_pretrained(tmp_path),
    )
    runner = load(tmp_path)
    assert runner.spec.tasks == ("classify", "embed", "tokenize", "detokenize")
    found = classify_all(runner, [Classify(text) for text in TEXTS])
    for labels, expected in zip(found, own(list(TEXTS), top_k=None, batch_size=1), strict=True):
        assert list(labels) == [item["label"] for item in expected]
        assert list(labels.values()) == pytest.approx(
            [item["score"] for item in expected], rel=1e-4, abs=1e-6
        )
    [most] = classify_all(runner, [Classify(TEXTS[1], top_k=1)])
    assert list(most) == list(found[1])[:1]


def test_rounded_weights(tmp_path: Path) -> None:
    """Near the exact vector, and the same beside others."""
    config = BertConfig(**SHARED | {"hidden_size": 384, "intermediate_size": 384})
    write(tmp_path, BertModel, config)
    exact = load(tmp_path)
    runner = load(tmp_path, quantize="int8")
    tasks = [Embed(text) for text in TEXTS]
    found = embed_all(runner, tasks)
    for vector, plain, task in zip(found, embed_all(exact, tasks), tasks, strict=True):
        assert unpack(vector) == pytest.approx(unpack(embed_all(runner, [task])[0]), abs=1e-5)
        assert vector != plain
        assert unpack(vector) == pytest.approx(unpack(plain), abs=0.05)
    assert runner.spec.found.partition(",")[0] == exact.spec.found.partition(",")[0]


def test_both_kinds_in_one_step(tmp_path: Path) -> None:
    write(tmp_path, *FAMILIES["classifier"])
    runner = load(tmp_path)
    vector = Embed(TEXTS[0])
    label = Classify(TEXTS[1], top_k=1)
    one, other = (
        item.ended
        for item in sorted(run(runner, [vector, label], [[], []]), key=lambda item: item.key)
    )
    assert unpack(end_of(one, Embedded).vector) == pytest.approx(
        unpack(embed_all(runner, [vector])[0]), abs=1e-5
    )
    assert end_of(other, Labelled).labels[0].name == next(iter(classify_all(runner, [label])[0]))


def test_too_long(tmp_path: Path) -> None:
    """It loses words, never its marks; RoBERTa's positions begin behind its padding row."""
    write(tmp_path, *FAMILIES["roberta"])
    runner = load(tmp_path)
    assert runner.spec.context_window == 33
    encoded = runner.encode(Embed("good " * 40))
    assert (len(encoded.prompt_ids), encoded.num_truncated) == (33, 9)
    assert (encoded.prompt_ids[0], encoded.prompt_ids[-1]) == (2, 3)
    assert len(embed_all(runner, [Embed("good " * 40)])) == 1
    with pytest.raises(ContextExceeded, match="is 33 tokens; the text has 42"):
        runner.encode(Embed("good " * 40, overflow="refuse"))


def test_what_it_does_not_do(tmp_path: Path) -> None:
    write(tmp_path, *FAMILIES["bert"])
    runner = load(tmp_path)
    assert runner.spec.tasks == ("embed", "tokenize", "detokenize")
    for task in (Generate("a", Sampling(1, 0)), Classify("a")):
        with pytest.raises(InvalidRequest, match=r"does not (generate|classify)") as caught:
            runner.encode(task)
        assert caught.value.field == "model"
    write(tmp_path / "labels", *FAMILIES["classifier"])
    with pytest.raises(InvalidRequest, match="top_k: expected at least 1, got 0"):
        load(tmp_path / "labels").encode(Classify("a", top_k=0))


def test_tokens(tmp_path: Path) -> None:
    write(tmp_path, *FAMILIES["bert"])
    runner = load(tmp_path)
    found = end_of(runner.encode(Tokenize("good film", with_texts=True)).answer, Tokenized)
    assert found.texts == ("[CLS]", "good", "film", "[SEP]")
    assert (
        end_of(runner.encode(Detokenize(found.ids)).answer, Detokenized).text
        == "[CLS] good film [SEP]"
    )
    bare = end_of(runner.encode(Tokenize("good film", add_special_tokens=False)).answer, Tokenized)
    assert bare.ids == found.ids[1:-1]
    assert runner.encode(Tokenize(Chat((Turn("user", "good"),)))).answer is not None


def test_served_by_settings(tmp_path: Path) -> None:
    """Its trial is a task of its own."""
    write(tmp_path, *FAMILIES["classifier"])
    [model] = load_models(Settings(models=(ModelEntry(id="labels", path=str(tmp_path)),)))
    assert (model.info.runner, model.info.tasks[0]) == ("encoder", "classify")
    assert "3 labels" in model.info.found
    assert warm_up(model.runner).startswith("labelled a text")


def change(path: Path, alter: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(path / "model.safetensors")
    alter(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_do_not_match_are_refused(tmp_path: Path) -> None:
    """Nothing is initialised at random, but for the pooler, which nobody asks."""
    write(tmp_path, *FAMILIES["bert"])
    change(
        tmp_path,
        lambda weights: [weights.pop(name) for name in list(weights) if name.startswith("pooler.")],
    )
    load(tmp_path)
    change(tmp_path, lambda weights: weights.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(ModelFormatError, match=r"missing: encoder.layer.1.output.dense.weight"):
        load(tmp_path)
    write(tmp_path, *FAMILIES["bert"])
    change(
        tmp_path,
        lambda weights: weights.update({"encoder.layer.2.output.dense.bias": torch.ones(24)}),
    )
    with pytest.raises(ModelFormatError, match=r"left over: encoder.layer.2"):
        load(tmp_path)
    write(tmp_path, *FAMILIES["classifier"])
    change(tmp_path, lambda weights: weights.pop("classifier.bias"))
    with pytest.raises(ModelFormatError, match=r"missing: classifier.bias"):
        load(tmp_path)


def test_a_network_that_padding_disturbs_is_refused(tmp_path: Path) -> None:
    """A decoder's classification head finds a row's end by the padding, of which this config says
    nothing."""
    config = GPT2Config(
        vocab_size=SIZE, n_positions=34, n_embd=24, n_layer=1, n_head=2, num_labels=2
    )
    model = write(tmp_path, GPT2ForSequenceClassification, config)
    with pytest.raises(ModelFormatError, match="cannot be run on padded rows"):
        load(tmp_path)
    model.config.pad_token_id = 0
    model.config.save_pretrained(tmp_path)
    assert len(classify_all(load(tmp_path), [Classify(text) for text in TEXTS])) == len(TEXTS)


@pytest.mark.parametrize(
    ("config", "runner"),
    [
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "causal"),
        ({"architectures": ["GPT2Model"], "model_type": "gpt2"}, "causal"),
        ({"architectures": ["BertLMHeadModel"], "model_type": "bert"}, "causal"),
        ({"model_type": "bert"}, "encoder"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, "encoder"),
        ({"architectures": ["MPNetModel"], "model_type": "mpnet"}, "encoder"),
        ({"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"}, "encoder"),
    ],
)
def test_which_runner_reads_it(tmp_path: Path, config: dict[str, Any], runner: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert detect(str(tmp_path)) == runner


def test_oracle_is_what_a_caller_would_do(tmp_path: Path) -> None:
    """The mean over the attention mask of a padded batch, as sentence encoders do it."""
    write(tmp_path, *FAMILIES["bert"])
    model = AutoModel.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer(list(TEXTS), padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    found = torch.tensor(
        [unpack(item) for item in embed_all(load(tmp_path), [Embed(text) for text in TEXTS])]
    )
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
