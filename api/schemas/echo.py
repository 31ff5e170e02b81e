"""Completions that repeat their prompt first (`echo`).

Log-probabilities of a prompt's tokens, and the text of a prompt given as ids, take a `Read` job,
which comes behind all jobs that generate.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from api.schemas.logprobs import logprobs_body
from api.schemas.openai import Completion, CompletionChoice, CompletionRequest, Heading
from api.schemas.q_values import q_values_body
from api.schemas.usage import detailed_usage_body
from api.stream.request_events import Choice, Outcome, total_usage
from shared.messages import Generate, Read, Text, TokenLogprob


def echo_tasks(body: CompletionRequest, max_tokens: int) -> list[Generate | Read]:
    """Return the tasks of a request with `echo`.

    Those that generate come first, unless `max_tokens` is 0. Those that read prompts follow.
    """
    tasks: list[Generate | Read] = []
    if max_tokens:
        tasks += [body.task(prompt, max_tokens) for prompt in body.prompt]
    for prompt in body.prompt:
        if _is_read(body, prompt):
            tasks.append(Read(prompt, body.logprobs or 0, body.condition, body.depth))
    return tasks


def echo_notes(body: CompletionRequest, max_tokens: int) -> dict[str, Any]:
    """Return the notes that `echoed` needs.

    `texts` are the prompts that were given as text, None for the others; `reads` tells which
    prompts have a `Read` job.
    """
    texts = []
    reads = []
    for prompt in body.prompt:
        texts.append(prompt if isinstance(prompt, str) else None)
        reads.append(_is_read(body, prompt))
    return {
        "texts": texts,
        "generates": max_tokens > 0,
        "reads": reads,
        "with_logprobs": body.logprobs is not None,
    }


def _is_read(body: CompletionRequest, prompt: Text) -> bool:
    return body.logprobs is not None or body.max_tokens == 0 or not isinstance(prompt, str)


def echoed(heading: Heading, outcomes: Sequence[Outcome], notes: Mapping[str, Any]) -> Completion:
    """Return the whole answer: one choice for each prompt, with the prompt's own text in front."""
    generated: Sequence[Outcome] = ()
    if notes["generates"]:
        generated = outcomes[: len(notes["texts"])]
    # The jobs that read come behind those that generate.
    reads = iter(outcomes[len(generated) :])

    choices = []
    for number, (text, is_read) in enumerate(zip(notes["texts"], notes["reads"], strict=True)):
        choice = _choice(
            number,
            text,
            prompt=next(reads).choices[0] if is_read else None,
            answer=generated[number] if generated else None,
            with_logprobs=notes["with_logprobs"],
        )
        choices.append(choice)
    usage = detailed_usage_body(total_usage(generated or outcomes))
    return Completion(
        id=heading.id, created=heading.created, model=heading.model, choices=choices, usage=usage
    )


def _choice(
    number: int,
    text: str | None,
    *,
    prompt: Choice | None,
    answer: Outcome | None,
    with_logprobs: bool,
) -> CompletionChoice:
    """Return one choice. A prompt that was given as text is repeated as it was given."""
    body = CompletionChoice(index=number, text=text or "", finish_reason="length", q_values=None)
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    if prompt is not None:
        if text is None:
            num_amended = answer.num_amended if answer is not None else 0
            body.text = _without_part(prompt.text, num_amended)
        ids += prompt.ids
        logprobs += prompt.logprobs
    if answer is not None:
        [choice] = answer.choices
        body.text += choice.text
        body.finish_reason = choice.finish_reason
        body.q_values = q_values_body(choice.q_values)
        ids += choice.ids
        logprobs += choice.logprobs
    if with_logprobs:
        body.logprobs = logprobs_body(ids, logprobs)
    return body


def _without_part(text: str, count: int) -> str:
    """Return a prompt's text without at most `count` U+FFFD at its end.

    These stand for the beginning of the answer's first character.
    """
    whole = text.rstrip("\ufffd")
    return text[: max(len(whole), len(text) - count)]
