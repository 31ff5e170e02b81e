"""The rules by which all text runners turn tasks into token ids: what is cut, what is refused."""

from collections.abc import Callable, Iterable, Sequence

from shared.errors import ContextExceeded, InvalidRequest
from shared.messages import (
    Chat,
    Classify,
    Detokenize,
    Embed,
    Generate,
    OtherTask,
    Read,
    Score,
    Solve,
    Task,
    Text,
    Tokenize,
    name_of,
)
from worker.engine.sequence import Encoded, EncodedText

TextTask = Generate | Score | Read | Tokenize | Detokenize | Embed
"""Tasks of every language model."""

SMALLEST_WINDOW = 16
"""The smallest context window that is served, in tokens: the family's marks, some text and an
answer must fit."""


def encode_generate(
    prompt_ids: Sequence[int], task: Generate, window: int, *, vocab_size: int, head: int = 0
) -> Encoded:
    """Return a prompt and `max_tokens` that fit into the context window together.

    A prompt loses tokens at its beginning, behind the first `head` tokens (the family's own marks,
    less than half the smallest window). The task's `overflow` says what happens to a prompt that is
    too long: `truncate` cuts as many tokens as leave room for `max_tokens`, but to no less than
    half the window. Raise ContextExceeded, InvalidRequest.
    """
    if not prompt_ids:
        raise InvalidRequest(
            "The prompt is empty: at least one token is expected.", field=_field(task)
        )
    check_ids([token for token, _ in task.sampling.logit_bias], vocab_size, "logit_bias")
    check_ids(task.sampling.stop_ids, vocab_size, "stop_token_ids")

    # The request's own limit first; at least one token stays behind the marks.
    room = len(prompt_ids)
    if task.max_prompt_tokens is not None:
        room = max(task.max_prompt_tokens, head + 1)
    kept, num_dropped = _cut(prompt_ids, room, head)
    max_tokens = _room_for_answer(len(kept), task, window)
    ids, num_cut = _cut(kept, window - max_tokens, head)
    return Encoded(ids, max_tokens, num_truncated=num_dropped + num_cut)


def _field(task: Generate) -> str:
    if isinstance(task.prompt, Chat):
        return "messages"
    return "prompt"


def _room_for_answer(num_prompt_tokens: int, task: Generate, window: int) -> int:
    """Return how many tokens the answer may have; raise ContextExceeded for a prompt that leaves
    too little."""
    wanted = task.sampling.max_tokens
    left = window - num_prompt_tokens
    if task.overflow == "truncate":
        # The prompt makes room for the answer, but keeps half the window.
        return min(wanted, max(left, window // 2))

    least = wanted if task.overflow == "refuse" else 1
    if least > left:
        at_least = "" if least == wanted else "at least "
        raise ContextExceeded(
            f"This model's maximum context length is {window} tokens; the request needs "
            f"{num_prompt_tokens + least} ({num_prompt_tokens} in the prompt, "
            f"{at_least}{least} for the completion).",
            field=_field(task) if left < 1 else "max_tokens",
        )
    return min(wanted, left)


def encode_score(
    context: Sequence[int],
    continuations: Sequence[Sequence[int]],
    window: int,
    *,
    method: str = "strict",
    head: int = 0,
) -> Encoded:
    """Return a context and its continuations.

    The context is cut at its beginning (behind `head`) so that the longest continuation fits behind
    it. Raise InvalidRequest where there is nothing to score, or it does not fit.
    """
    lengths = [len(continuation) for continuation in continuations]
    if not context:
        raise InvalidRequest(
            "The prompt has no tokens and the model has no start token.", field="prompts"
        )
    if 0 in lengths:
        raise InvalidRequest("A continuation has no tokens.", field="continuations")

    longest = max(lengths)
    room = window - longest
    if method == "strict":
        # A continuation's last token is predicted and never read, so it needs no room.
        room += 1
    if room <= head:
        problem = (
            f"A continuation has {longest} tokens; at most {longest + room - head - 1} fit the "
            "context window."
        )
        raise InvalidRequest(problem, field="continuations")
    ids, num_cut = _cut(context, room, head)
    return Encoded(
        ids,
        continuations=tuple(tuple(continuation) for continuation in continuations),
        method=method,
        num_truncated=num_cut,
    )


def encode_read(prompt_ids: Sequence[int], num_seen: int, task: Read, window: int) -> Encoded:
    """Return a prompt whose first `num_seen` tokens are seen at once, and whose rest is predicted
    token by token."""
    if not prompt_ids:
        raise InvalidRequest("The prompt is empty: at least one token is expected.", field="prompt")
    if len(prompt_ids) > window:
        problem = (
            f"This model's maximum context length is {window} tokens; the prompt has "
            f"{len(prompt_ids)}."
        )
        raise ContextExceeded(problem, field="prompt")
    seen = tuple(prompt_ids[:num_seen])
    rest = tuple(prompt_ids[num_seen:])
    if not rest:
        return Encoded(seen, num_top=task.num_top)
    return Encoded(seen, continuations=(rest,), num_top=task.num_top)


def encode_text(
    ids: Sequence[int], task: Embed | Classify, window: int, *, num_behind: int = 0
) -> Encoded:
    """Return a text that is read in one pass.

    One that is too long is refused, or loses tokens before its last `num_behind`, as the task's
    `overflow` says.
    """
    if not ids:
        raise InvalidRequest("The text has no tokens.", field="input")
    num_cut = max(0, len(ids) - window)
    if num_cut and task.overflow == "refuse":
        problem = (
            f"This model's maximum context length is {window} tokens; the text has {len(ids)}."
        )
        raise ContextExceeded(problem, field="input")
    end = len(ids) - num_behind
    kept = (*ids[: end - num_cut], *ids[end:])
    if isinstance(task, Embed):
        return Encoded(kept, num_truncated=num_cut, is_pooled=True, is_normalized=task.normalize)
    if task.top_k is not None and task.top_k < 1:
        raise InvalidRequest(f"top_k: expected at least 1, got {task.top_k}.", field="top_k")
    return EncodedText(kept, num_truncated=num_cut, top_k=task.top_k)


def _cut(ids: Sequence[int], room: int, head: int) -> tuple[tuple[int, ...], int]:
    """Cut `ids` behind the first `head` to at most `room`; return them and how many were cut."""
    num_cut = max(0, len(ids) - room)
    return (*ids[:head], *ids[head + num_cut :]), num_cut


def text_task(task: Task) -> TextTask:
    """Return the task if it is one for a language model; raise InvalidRequest for any other."""
    # The front checks that too, but a model's kind may change under its name.
    if isinstance(task, Solve):
        raise InvalidRequest("This model solves no puzzles.", field="model")
    if isinstance(task, Classify):
        raise InvalidRequest("This model knows no labels.", field="model")
    if isinstance(task, OtherTask):
        raise InvalidRequest(
            f"This model does not serve the task {name_of(task)!r}.", field="model"
        )
    return task


def as_ids(text: Text, vocab_size: int, field: str) -> tuple[int, ...] | None:
    """Return the ids of a prompt given as ids, checked against the vocabulary; None for a prompt
    given as text."""
    if isinstance(text, str):
        return None
    check_ids(text, vocab_size, field)
    return text


def check_ids(
    ids: Sequence[int], vocab_size: int, field: str, texts: Callable[[int], str] | None = None
) -> None:
    """Raise InvalidRequest naming the first id that no token has.

    `texts` maps ids to the pieces of the text that they come from, which are then named too.
    """
    for token in ids:
        if 0 <= token < vocab_size:
            continue
        named = str(token) if texts is None else f"{token} for {texts(token)!r}"
        raise InvalidRequest(
            f"{field}: token ids from 0 to {vocab_size - 1} are expected, got {named}.", field=field
        )


def known_ids(ids: Iterable[int], vocab_size: int) -> frozenset[int]:
    """Return those of the ids that the network can predict; a tokenizer may name others."""
    return frozenset(token for token in ids if 0 <= token < vocab_size)
