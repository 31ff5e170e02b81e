"""The tasks that read a text at once, without writing one, and their results."""

from typing import Literal

import msgspec

from shared.tasks.results import OtherResult
from shared.tasks.specs import OtherTask

Aggregation = Literal["none", "simple", "first", "max", "average"]
"""transformers' strategies, by which labels of tokens become those of words and names."""


class LabelTokens(OtherTask, frozen=True, omit_defaults=True, tag="token-classification"):
    """Return the parts of a text that have a label, such as names."""

    text: str
    aggregation: Aggregation = "simple"


class LabelledPart(msgspec.Struct, frozen=True):
    """A part of a text: the characters from `start` to `end`, left out."""

    label: str
    score: float
    text: str
    start: int
    end: int


class LabelledParts(OtherResult, frozen=True, tag="token-classification"):
    parts: tuple[LabelledPart, ...]


class ClassifyAmong(OtherTask, frozen=True, omit_defaults=True, tag="zero-shot-classification"):
    """Return the probability of each of these labels, in words that the template completes.

    With `multi_label` each label is judged by itself.
    """

    text: str
    labels: tuple[str, ...]
    template: str = "This example is {}."
    multi_label: bool = False


class FindAnswer(OtherTask, frozen=True, omit_defaults=True, tag="question-answering"):
    """Return the parts of a text that answer a question best, of at most `max_length` tokens."""

    question: str
    context: str
    top_k: int = 1
    max_length: int = 15


class FoundAnswer(msgspec.Struct, frozen=True):
    """An answer: the characters of the text from `start` to `end`, left out."""

    text: str
    score: float
    start: int
    end: int


class FoundAnswers(OtherResult, frozen=True, tag="question-answering"):
    """The answers, likeliest first."""

    answers: tuple[FoundAnswer, ...]


class RankText(OtherTask, frozen=True, omit_defaults=True, tag="text-ranking"):
    """Return how well a text answers a query, as the score of its only label.

    A text that exceeds the context window loses its end.
    """

    query: str
    text: str


class FillMask(OtherTask, frozen=True, omit_defaults=True, tag="fill-mask"):
    """Return the likeliest tokens for each mask of a text, or the likeliest of `targets`."""

    text: str
    top_k: int = 5
    targets: tuple[str, ...] = ()


class Fill(msgspec.Struct, frozen=True):
    """A token for a mask, and the text with it."""

    token: int
    token_text: str
    score: float
    text: str


class FilledMasks(OtherResult, frozen=True, tag="fill-mask"):
    """For each mask of the text its fills, likeliest first."""

    masks: tuple[tuple[Fill, ...], ...]
