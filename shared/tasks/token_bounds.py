"""The most tokens that a task may use, before a tokenizer has seen it.

Budgets reserve them. Tokenizers make at most one token of each byte of a text, and add marks of
their own.
"""

import msgspec

from shared.messages import (
    Chat,
    Classify,
    Detokenize,
    Embed,
    Generate,
    Prompt,
    Read,
    Score,
    Task,
    TextPart,
    Tokenize,
    Turn,
)

# The start token, the end token and a condition, and some for what other tokenizers put there.
_MARKS = 8
# A chat template writes names and marks around each turn, and some write a page before the first.
_MARKS_OF_TEMPLATE = 512
_MARKS_OF_TURN = 16
# Models see a picture or a sound as at most about so many tokens.
_TOKENS_OF_MEDIUM = 4096

_encoder = msgspec.msgpack.Encoder()


def most_prompt_tokens(task: Task, context_window: int) -> int:
    """Return the most tokens that a task's prompt should have.

    A `context_window` of 0 is not known. A template may write more than is expected here, so a
    worker compares the prompt with this once it has read it.
    """
    match task:
        case Generate(prompt=prompt):
            most = _most_of(prompt)
            if task.max_prompt_tokens is not None:
                most = min(most, task.max_prompt_tokens + _MARKS)
        case Read(prompt=prompt) | Tokenize(prompt=prompt):
            most = _most_of(prompt)
        case Embed(text=text) | Classify(text=text):
            most = _most_of(text)
        case Score():
            most = _most_of(task.context) + sum(map(_most_of, task.continuations))
        case Detokenize(ids=ids):
            most = len(ids)
        case _:
            # The text of any task is in its message.
            most = len(_encoder.encode(task))
    may_exceed_window = isinstance(task, Score | Tokenize | Detokenize)
    if context_window and not may_exceed_window:
        return min(most, context_window)
    return most


def most_tokens(task: Task, most_prompt_tokens: int) -> int:
    """Return the most tokens that a task may use, with a prompt of so many."""
    if isinstance(task, Generate):
        return most_prompt_tokens + task.sampling.n * task.sampling.max_tokens
    return most_prompt_tokens


def _most_of(prompt: Prompt) -> int:
    if isinstance(prompt, Chat):
        return _MARKS_OF_TEMPLATE + sum(map(_most_of_turn, prompt.messages))
    if isinstance(prompt, str):
        return len(prompt.encode()) + _MARKS
    return len(prompt) + _MARKS


def _most_of_turn(turn: Turn) -> int:
    if isinstance(turn.content, str):
        return _MARKS_OF_TURN + len(turn.content.encode())
    most = _MARKS_OF_TURN
    for part in turn.content:
        if isinstance(part, TextPart):
            most += len(part.text.encode())
        else:
            most += _TOKENS_OF_MEDIUM
    return most
