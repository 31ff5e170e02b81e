"""The answers of tasks that end when they are encoded, without a step of an engine."""

from collections.abc import Sequence

from shared.messages import Detokenized, Done, Tokenized
from worker.engine.sequence import Encoded


def tokenized(ids: tuple[int, ...], texts: Sequence[str] = ()) -> Encoded:
    """Return the answer to Tokenize: token ids and, if asked for, their texts."""
    result = Tokenized(ids, tuple(texts))
    done: Done = Done("tokenize", len(ids), num_completion_tokens=0, result=result)
    return Encoded(ids, answer=done)


def detokenized(ids: tuple[int, ...], text: str) -> Encoded:
    """Return the answer to Detokenize: the text of `ids`."""
    done: Done = Done("detokenize", len(ids), num_completion_tokens=0, result=Detokenized(text))
    return Encoded(ids, answer=done)
