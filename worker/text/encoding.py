"""The rules of all text runners for the length of prompts: which are cut, and which are refused."""

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
    TextPart,
    Tokenize,
    Turn,
    name_of,
)
from worker.engine.sequence import Encoded, EncodedText

TextTask = Generate | Score | Read | Tokenize | Detokenize | Embed
"""Tasks of every language model."""

SMALLEST_WINDOW = 16
"""The smallest context window that is served, in tokens.

The family's marks, some text and an answer must fit.
"""


def text_of(turn: Turn) -> str:
    """Return the text of a turn. Raise InvalidRequest for one with a picture or a sound in it."""
    if isinstance(turn.content, str):
        return turn.content
    texts = []
    for part in turn.content:
        if not isinstance(part, TextPart):
            raise InvalidRequest("messages: this model reads texts alone.", field="messages")
        texts.append(part.text)
    return "".join(texts)


def encode_generate(
    prompt_ids: Sequence[int], task: Generate, window: int, *, vocab_size: int, head: int = 0
) -> Encoded:
    """Return a prompt and `max_tokens` that fit into the context window together.

    The task's `overflow` says what happens to a prompt that is too long. With `truncate` the prompt
    is cut so that `max_tokens` fit behind it, but keeps at least half the window. It loses tokens
    at its beginning, behind the first `head` tokens (the family's own marks, fewer than half the
    smallest window). With `refuse` and `clamp` ContextExceeded is raised; `clamp` first lowers
    `max_tokens`. Raise InvalidRequest for an empty prompt and for ids outside the vocabulary.
    """
    if not prompt_ids:
        raise InvalidRequest(
            "The prompt is empty: at least one token is expected.", field=_field(task)
        )
    check_ids([token for token, _ in task.sampling.logit_bias], vocab_size, "logit_bias")
    check_ids(task.sampling.stop_ids, vocab_size, "stop_token_ids")

    # The request's own limit comes first. At least one token stays behind the marks.
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
    """Return how many tokens the answer may have.

    Raise ContextExceeded for a prompt that leaves too little room.
    """
    max_tokens = task.sampling.max_tokens
    room = window - num_prompt_tokens
    if task.overflow == "truncate":
        # The prompt makes room for the answer, but keeps half the window.
        return min(max_tokens, max(room, window // 2))

    least = max_tokens if task.overflow == "refuse" else 1
    if least > room:
        at_least = "" if least == max_tokens else "at least "
        raise ContextExceeded(
            f"This model's maximum context length is {window} tokens; the request needs "
            f"{num_prompt_tokens + least} ({num_prompt_tokens} in the prompt, "
            f"{at_least}{least} for the completion).",
            field=_field(task) if room < 1 else "max_tokens",
        )
    return min(max_tokens, room)


def encode_score(
    context: Sequence[int],
    continuations: Sequence[Sequence[int]],
    window: int,
    *,
    method: str = "strict",
    head: int = 0,
) -> Encoded:
    """Return a context and its continuations.

    The context is cut at its beginning (behind `head` tokens) so that the longest continuation fits
    behind it. Raise InvalidRequest for an empty context, for an empty continuation, and for one
    that does not fit.
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
    """Return a prompt to be read.

    Its first `num_seen` tokens are the context, and the others are predicted one by one. Raise
    InvalidRequest for an empty prompt, ContextExceeded for one that is too long.
    """
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

    The task's `overflow` says what happens to a text that is too long: ContextExceeded is raised,
    or the text loses tokens before its last `num_behind` ones. Raise InvalidRequest for an empty
    text or a wrong `top_k`.
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
    """Cut `ids` behind the first `head` to at most `room`. Return them and the number cut."""
    num_cut = max(0, len(ids) - room)
    return (*ids[:head], *ids[head + num_cut :]), num_cut


def text_task(task: Task) -> TextTask:
    """Return the task if it is one for a language model. Raise InvalidRequest for any other."""
    # The front checks that, too, but another model may have been loaded under this name since.
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
    """Return the ids of a prompt that is given as ids, None for one that is given as text.

    Raise InvalidRequest for ids outside the vocabulary.
    """
    if isinstance(text, str):
        return None
    check_ids(text, vocab_size, field)
    return text


def check_ids(
    ids: Sequence[int], vocab_size: int, field: str, texts: Callable[[int], str] | None = None
) -> None:
    """Raise InvalidRequest, which names the first of the ids that is outside the vocabulary.

    `texts` maps an id to the piece of text that it comes from, which is then named, too.
    """
    for token in ids:
        if 0 <= token < vocab_size:
            continue
        description = str(token)
        if texts is not None:
            description = f"{token} for {texts(token)!r}"
        problem = f"token ids from 0 to {vocab_size - 1} are expected, got {description}"
        raise InvalidRequest(f"{field}: {problem}.", field=field)


def known_ids(ids: Iterable[int], vocab_size: int) -> frozenset[int]:
    """Return the ids that the network can predict. A tokenizer may have others, too."""
    return frozenset(token for token in ids if 0 <= token < vocab_size)
