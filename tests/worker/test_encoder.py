"""Encoders and classifiers answer as transformers' own forward and pipeline."""

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
    AutoModelForSequenceClassification,
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
from shared.tasks.words import RankText
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


def plain_mean(model: PreTrainedModel, text: str) -> Tensor:
    """Return the mean of the last hidden states of one text, from transformers' forward."""
    inputs = word_tokenizer()(text, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
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
    """A vector is the mean of a plain forward, in a padded batch and alone (B55, D25).

    The head that was saved with the network does not matter.
    """
    model = write(tmp_path, *FAMILIES[family])
    assert detect(str(tmp_path)) == "encoder"
    runner = load(tmp_path, max_batch=3)
    tasks = [Embed(text, normalize=False) for text in TEXTS]

    vectors = embed_all(runner, tasks)

    for text, task, vector in zip(TEXTS, tasks, vectors, strict=True):
        expected = plain_mean(model, text)
        [alone] = embed_all(runner, [task])
        assert len(expected) == 24
        assert torch.tensor(unpack(vector)) == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert torch.tensor(unpack(alone)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


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
    """Labels and scores are the pipeline's for every problem type, the likeliest first."""
    if family == "bert":
        write(tmp_path, BertForSequenceClassification, BertConfig(**SHARED, **PROBLEMS[problem]))
    else:
        config = DistilBertConfig(**DISTILBERT, **PROBLEMS[problem])
        write(tmp_path, DistilBertForSequenceClassification, config)
    classifier = pipeline(
        "text-classification",
        model=str(tmp_path),
        tokenizer=AutoTokenizer.from_pretrained(tmp_path),
    )
    expected = classifier(list(TEXTS), top_k=None, batch_size=1)
    runner = load(tmp_path)
    tasks = ("classify", "embed", "tokenize", "detokenize")
    if runner.model.config.num_labels == 1:
        tasks = ("text-ranking", *tasks)
    assert runner.spec.tasks == tasks

    results = classify_all(runner, [Classify(text) for text in TEXTS])

    for labels, rows in zip(results, expected, strict=True):
        # In order: the likeliest first.
        for (name, score), row in zip(labels.items(), rows, strict=True):
            assert name == row["label"]
            assert score == pytest.approx(row["score"], rel=1e-4, abs=1e-6)
    [top] = classify_all(runner, [Classify(TEXTS[1], top_k=1)])
    assert list(top) == list(results[1])[:1]


def test_rounded_weights(tmp_path: Path) -> None:
    """A vector of int8 weights is near the exact one, and the same beside others."""
    config = BertConfig(**SHARED | {"hidden_size": 384, "intermediate_size": 384})
    write(tmp_path, BertModel, config)
    exact = load(tmp_path)
    rounded = load(tmp_path, quantize="int8")
    tasks = [Embed(text) for text in TEXTS]

    exact_vectors = embed_all(exact, tasks)
    vectors = embed_all(rounded, tasks)

    for task, vector, exact_vector in zip(tasks, vectors, exact_vectors, strict=True):
        [alone] = embed_all(rounded, [task])
        assert unpack(vector) == pytest.approx(unpack(alone), abs=1e-5)
        assert vector != exact_vector
        assert unpack(vector) == pytest.approx(unpack(exact_vector), abs=0.05)
    assert rounded.spec.found.partition(",")[0] == exact.spec.found.partition(",")[0]


def test_both_kinds_in_one_step(tmp_path: Path) -> None:
    """A vector and a label that are computed in one step are those computed alone."""
    write(tmp_path, *FAMILIES["classifier"])
    runner = load(tmp_path)
    embed = Embed(TEXTS[0])
    classify = Classify(TEXTS[1], top_k=1)

    first, second = run(runner, [embed, classify], [[], []])

    assert (first.key, second.key) == ("0", "1")
    vector = end_of(first.ended, Embedded).vector
    [alone] = embed_all(runner, [embed])
    assert unpack(vector) == pytest.approx(unpack(alone), abs=1e-5)
    [label] = end_of(second.ended, Labelled).labels
    [labels_alone] = classify_all(runner, [classify])
    assert [label.name] == list(labels_alone)


def test_too_long(tmp_path: Path) -> None:
    """A text that is too long loses words, never its special tokens, or is refused."""
    write(tmp_path, *FAMILIES["roberta"])
    runner = load(tmp_path)
    # 34 positions, less one: RoBERTa's begin behind its padding row.
    assert runner.spec.context_window == 33

    encoded = runner.encode(Embed("good " * 40))
    assert len(encoded.prompt_ids) == 33
    assert encoded.num_truncated == 9
    assert encoded.prompt_ids[0] == 2
    assert encoded.prompt_ids[-1] == 3
    assert len(embed_all(runner, [Embed("good " * 40)])) == 1

    with pytest.raises(ContextExceeded, match="is 33 tokens; the text has 42"):
        runner.encode(Embed("good " * 40, overflow="refuse"))


def test_what_it_does_not_do(tmp_path: Path) -> None:
    """A task that an encoder has no head for is refused, and so is a `top_k` of 0."""
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
    """An encoder tokenizes and detokenizes, with and without its special tokens."""
    write(tmp_path, *FAMILIES["bert"])
    runner = load(tmp_path)

    tokenized = end_of(runner.encode(Tokenize("good film", with_texts=True)).answer, Tokenized)
    assert tokenized.texts == ("[CLS]", "good", "film", "[SEP]")

    detokenized = end_of(runner.encode(Detokenize(tokenized.ids)).answer, Detokenized)
    assert detokenized.text == "[CLS] good film [SEP]"

    bare_task = Tokenize("good film", add_special_tokens=False)
    bare = end_of(runner.encode(bare_task).answer, Tokenized)
    assert bare.ids == tokenized.ids[1:-1]

    assert runner.encode(Tokenize(Chat((Turn("user", "good"),)))).answer is not None


def test_served_by_settings(tmp_path: Path) -> None:
    """A classifier is loaded by its settings, and warmed up with a task of its own."""
    write(tmp_path, *FAMILIES["classifier"])
    [model] = load_models(Settings(models=(ModelEntry(id="labels", path=str(tmp_path)),)))

    assert model.info.runner == "encoder"
    assert model.info.tasks[0] == "classify"
    assert "3 labels" in model.info.found
    assert warm_up(model.runner).startswith("labelled its trial")


def read_weights(path: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = load_file(path / "model.safetensors")
    return weights


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_do_not_match_are_refused(tmp_path: Path) -> None:
    """Nothing is initialised at random, but for the pooler, which no task uses."""
    write(tmp_path, *FAMILIES["bert"])
    weights = read_weights(tmp_path)
    for name in list(weights):
        if name.startswith("pooler."):
            del weights[name]
    write_weights(tmp_path, weights)
    load(tmp_path)

    del weights["encoder.layer.1.output.dense.weight"]
    write_weights(tmp_path, weights)
    with pytest.raises(ModelFormatError, match=r"missing: encoder.layer.1.output.dense.weight"):
        load(tmp_path)

    write(tmp_path, *FAMILIES["bert"])
    weights = read_weights(tmp_path)
    weights["encoder.layer.2.output.dense.bias"] = torch.ones(24)
    write_weights(tmp_path, weights)
    with pytest.raises(ModelFormatError, match=r"left over: encoder.layer.2"):
        load(tmp_path)

    write(tmp_path, *FAMILIES["classifier"])
    weights = read_weights(tmp_path)
    del weights["classifier.bias"]
    write_weights(tmp_path, weights)
    with pytest.raises(ModelFormatError, match=r"missing: classifier.bias"):
        load(tmp_path)


def test_a_network_that_padding_disturbs_is_refused(tmp_path: Path) -> None:
    """A decoder's classification head is refused where the config names no padding token.

    The head finds a row's end by the padding.
    """
    config = GPT2Config(
        vocab_size=SIZE, n_positions=34, n_embd=24, n_layer=1, n_head=2, num_labels=2
    )
    model = write(tmp_path, GPT2ForSequenceClassification, config)
    with pytest.raises(ModelFormatError, match="cannot be run on padded rows"):
        load(tmp_path)

    model.config.pad_token_id = 0
    model.config.save_pretrained(tmp_path)
    labels = classify_all(load(tmp_path), [Classify(text) for text in TEXTS])
    assert len(labels) == len(TEXTS)


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
    """The config decides between a language model and an encoder."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert detect(str(tmp_path)) == runner


def test_oracle_is_what_a_caller_would_do(tmp_path: Path) -> None:
    """A vector is the mean over the attention mask of a padded batch.

    Sentence encoders compute it like that.
    """
    write(tmp_path, *FAMILIES["bert"])
    model = AutoModel.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer(list(TEXTS), padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
    means = (states * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(means, dim=-1)

    vectors = embed_all(load(tmp_path), [Embed(text) for text in TEXTS])

    unpacked = torch.tensor([unpack(vector) for vector in vectors])
    assert torch.allclose(unpacked, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "bert without types", "distilbert"])
def test_ranks_are_those_of_a_cross_encoder(tmp_path: Path, family: str) -> None:
    """A text and its query are read together, each with its type where the network has types."""
    one = {"num_labels": 1}
    if family == "distilbert":
        write(tmp_path, DistilBertForSequenceClassification, DistilBertConfig(**DISTILBERT, **one))
    else:
        write(tmp_path, BertForSequenceClassification, BertConfig(**SHARED, **one))
    if family == "bert":
        word_tokenizer(with_types=True).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    long = " ".join(["film"] * 60)
    pairs = [("good", text) for text in (*TEXTS, long)] + [(long, long), (long, "bad")]
    runner = load(tmp_path)
    window = runner.spec.context_window

    found = classify_all(runner, [RankText(query, text) for query, text in pairs])

    expected = []
    for query, text in pairs:
        inputs = tokenizer(query, text, truncation=True, max_length=window, return_tensors="pt")
        assert ("token_type_ids" in inputs) == (family == "bert")
        with torch.no_grad():
            expected.append(float(model(**inputs).logits.sigmoid()))
    assert [score for labels in found for score in labels.values()] == pytest.approx(
        expected, rel=1e-4, abs=1e-6
    )
    assert len(set(expected)) == len(expected)


def test_a_classifier_of_several_labels_does_not_rank(tmp_path: Path) -> None:
    write(tmp_path, *FAMILIES["classifier"])
    with pytest.raises(InvalidRequest, match="does not text-ranking"):
        load(tmp_path).encode(RankText("good", "bad"))
