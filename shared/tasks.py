"""Tasks: what a job asks a model for, as fronts write it and workers read it.

Part of `shared.messages`, which has the rules of the wire.
"""

from typing import Literal

import msgspec

Text = str | tuple[int, ...]
"""A prompt as text, or as token ids that are used as they are."""


class Turn(msgspec.Struct, frozen=True):
    """One turn of a dialogue."""

    role: Literal["system", "user", "assistant"]
    content: str


class Chat(msgspec.Struct, frozen=True):
    """A dialogue to be answered; the model's worker writes it as its template says."""

    messages: tuple[Turn, ...]


Prompt = Text | Chat

Grid = tuple[str | tuple[int, ...], ...]
"""The rows of a puzzle, top to bottom: each a string with a character a cell, or a tuple with a
number a cell."""

Halt = Literal["max", "q_halt"]
"""When a puzzle's row stops: after its last permitted ACT segment, or where its own q head says
so."""


Overflow = Literal["truncate", "clamp", "refuse"]
"""What gives way when a prompt and `max_tokens` exceed the context window: the prompt's beginning,
`max_tokens`, or the whole request. A prompt that leaves no room for any answer is refused by
`clamp` as well."""


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """The parameters of sampling. `temperature` 0 is greedy; `top_k` 0, `top_p` 1.0 and `min_p` 0
    do not cut.

    `n` choices are drawn for the prompt. Before `min_tokens` nothing ends a response: no end token,
    no stop. `logprobs` counts the likeliest tokens to report beside each chosen one; None reports
    nothing.
    """

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    n: int = 1
    min_p: float = 0.0
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_ids: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = None


class Generate(msgspec.Struct, frozen=True, omit_defaults=True, tag="generate"):
    """Continue one prompt. `condition` None is the model's default.

    Of the prompt at most the last `max_prompt_tokens` are used; what is still too long is a matter
    of `overflow`.
    """

    prompt: Prompt
    sampling: Sampling
    condition: str | None = None
    overflow: Overflow = "truncate"
    max_prompt_tokens: int | None = None


class Score(msgspec.Struct, frozen=True, omit_defaults=True, tag="score"):
    """Log-likelihood of each continuation given one context. `method` None is the model's default.

    `rolling`: of a whole text of any length, the only continuation of an empty context.
    """

    context: Text
    continuations: tuple[Text, ...]
    condition: str | None = None
    method: Literal["strict", "aios_compat"] | None = None
    rolling: bool = False


class Read(msgspec.Struct, frozen=True, omit_defaults=True, tag="read"):
    """Say the tokens of a prompt, each with its log-probability under what stands before it, as far
    as the model predicts its prompts, and beside it the `num_top` likeliest. `condition` None is
    the model's default."""

    prompt: Text
    num_top: int = 0
    condition: str | None = None


class Solve(msgspec.Struct, frozen=True, omit_defaults=True, tag="solve"):
    """Solve one puzzle, given as a grid or as the cells of a Sudoku in one string.

    `identifier` names what the puzzle's family is to the network, by number or name; None is the
    blank one. `max_steps` is the most ACT segments; None is what the network was trained to, as
    None for `halt` is the model's default.
    """

    puzzle: str | Grid
    identifier: int | str | None = None
    halt: Halt | None = None
    max_steps: int | None = None


class Tokenize(msgspec.Struct, frozen=True, omit_defaults=True, tag="tokenize"):
    """The ids that `Generate` would read for the prompt, before anything is cut, or those of a text
    by itself.

    `add_special_tokens` is about texts: a chat's template writes the special tokens, ids are used
    as they are. `with_texts` asks for the vocabulary's own spelling of each.
    """

    prompt: Prompt
    add_special_tokens: bool = True
    with_texts: bool = False


class Detokenize(msgspec.Struct, frozen=True, omit_defaults=True, tag="detokenize"):
    """The text of token ids, the names of special tokens in it or left out."""

    ids: tuple[int, ...]
    skip_special_tokens: bool = False


TooLong = Literal["truncate", "refuse"]
"""What becomes of a text that exceeds the context window: it loses its end, or it is refused."""


class Embed(msgspec.Struct, frozen=True, omit_defaults=True, tag="embed"):
    """One vector for a text: the mean of the last hidden states of its tokens, of length 1 if
    `normalize`."""

    text: Text
    normalize: bool = True
    overflow: TooLong = "truncate"


class Classify(msgspec.Struct, frozen=True, omit_defaults=True, tag="classify"):
    """The labels that a classifier gives a text: the `top_k` likeliest, or all."""

    text: Text
    top_k: int | None = None
    overflow: TooLong = "truncate"


class OtherTask(msgspec.Struct, frozen=True):
    """Base of the tasks of plugins. Each has a tag of its own, its name."""


Task = Generate | Score | Read | Solve | Tokenize | Detokenize | Embed | Classify | OtherTask
BUILT_IN = (Generate, Score, Read, Solve, Tokenize, Detokenize, Embed, Classify)

TaskName = str
"""Their tags."""


def name_of(task: Task) -> TaskName:
    return str(task.__struct_config__.tag)
