"""Completions that say their prompt first. Log-probabilities of a prompt's tokens, and the text of
a prompt given as ids, take a `Read` job for it, which comes behind all jobs that generate."""

from collections.abc import Mapping, Sequence
from typing import Any

from api.request_events import Choice, Outcome, total_usage
from api.schemas.logprobs import logprobs_body
from api.schemas.openai import Completion, CompletionChoice, CompletionRequest, Heading
from api.schemas.q_values import q_values_body
from api.schemas.usage import detailed_usage_body
from shared.messages import Generate, Read, Text


def echo_tasks(body: CompletionRequest, max_tokens: int) -> list[Generate | Read]:
    """What must be done for a request with `echo`: to generate, unless `max_tokens` is 0, and to
    read."""
    generating = [body.task(prompt, max_tokens) for prompt in body.prompt] if max_tokens else []
    reading = [
        Read(prompt, body.logprobs or 0, body.condition)
        for prompt in body.prompt
        if _is_read(body, prompt)
    ]
    return [*generating, *reading]


def echo_notes(body: CompletionRequest, max_tokens: int) -> dict[str, Any]:
    """What `echoed` must know later: the texts of prompts that were given as text, which of them
    are read."""
    texts = [prompt if isinstance(prompt, str) else None for prompt in body.prompt]
    reads = [_is_read(body, prompt) for prompt in body.prompt]
    return {
        "texts": texts,
        "generates": max_tokens > 0,
        "reads": reads,
        "with_logprobs": body.logprobs is not None,
    }


def _is_read(body: CompletionRequest, prompt: Text) -> bool:
    return body.logprobs is not None or body.max_tokens == 0 or not isinstance(prompt, str)


def echoed(heading: Heading, outcomes: Sequence[Outcome], notes: Mapping[str, Any]) -> Completion:
    """The whole answer: of each prompt one choice, its own text in front."""
    count = len(notes["texts"])
    said = outcomes[:count] if notes["generates"] else ()
    reads = iter(outcomes[len(said) :])
    with_logprobs = notes["with_logprobs"]
    choices = [
        _choice(
            number,
            text,
            next(reads).choices[0] if is_read else None,
            said[number] if said else None,
            with_logprobs=with_logprobs,
        )
        for number, (text, is_read) in enumerate(zip(notes["texts"], notes["reads"], strict=True))
    ]
    usage = detailed_usage_body(total_usage(said or outcomes))
    return Completion(
        id=heading.id, created=heading.created, model=heading.model, choices=choices, usage=usage
    )


def _choice(
    number: int,
    text: str | None,
    prompt: Choice | None,
    said: Outcome | None,
    *,
    with_logprobs: bool,
) -> CompletionChoice:
    """A prompt that was given as text is said as it was given."""
    answer = said.choices[0] if said is not None else None
    if text is None and prompt is not None:
        text = _without_part(prompt.text, said.num_amended) if said is not None else prompt.text
    parts = [part for part in (prompt, answer) if part is not None]
    ids, logprobs = (
        sum((part.ids for part in parts), ()),
        sum((part.logprobs for part in parts), ()),
    )
    texts = [text or "", answer.text if answer else ""]
    return CompletionChoice(
        index=number,
        text="".join(texts),
        logprobs=logprobs_body(ids, logprobs) if with_logprobs else None,
        finish_reason=answer.finish_reason if answer else "length",
        q_values=q_values_body(answer.q_values) if answer else None,
    )


def _without_part(text: str, count: int) -> str:
    """A prompt's text, less at most `count` U+FFFD at its end: they stand for the beginning of the
    answer's first character."""
    whole = text.rstrip("\ufffd")
    return text[: max(len(whole), len(text) - count)]
