"""Tasks that are answered by encoding them: their end needs no step of the engine."""

from collections.abc import Sequence

from shared.messages import Detokenized, Done, Tokenized
from worker.sequence import Encoded


def tokenized(ids: tuple[int, ...], texts: Sequence[str] = ()) -> Encoded:
    return Encoded(ids, answer=Done("tokenize", len(ids), 0, result=Tokenized(ids, tuple(texts))))


def detokenized(ids: tuple[int, ...], text: str) -> Encoded:
    return Encoded(ids, answer=Done("detokenize", len(ids), 0, result=Detokenized(text)))
