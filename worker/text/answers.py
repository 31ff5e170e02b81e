"""The answers of tasks that are done once they are encoded: their end needs no step of an
engine."""

from collections.abc import Sequence

from shared.messages import Detokenized, Done, Tokenized
from worker.engine.sequence import Encoded


def tokenized(ids: tuple[int, ...], texts: Sequence[str] = ()) -> Encoded:
    result = Tokenized(ids, tuple(texts))
    done: Done = Done("tokenize", len(ids), num_completion_tokens=0, result=result)
    return Encoded(ids, answer=done)


def detokenized(ids: tuple[int, ...], text: str) -> Encoded:
    done: Done = Done("detokenize", len(ids), num_completion_tokens=0, result=Detokenized(text))
    return Encoded(ids, answer=done)
