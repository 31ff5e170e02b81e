"""Tasks: the work that a job asks a model for, as fronts write it and workers read it.

Part of `shared.messages`, which has the rules of the wire.
"""

from typing import Literal

import msgspec

Modality = Literal["text", "image", "audio", "video", "3d", "series"]
"""The kind of data that a task reads or makes, beside text: `series` are series of numbers."""

Text = str | tuple[int, ...]
"""A prompt as text, or as token ids that are used as they are."""


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """A part of a turn that is text."""

    text: str


class ImagePart(msgspec.Struct, frozen=True, tag="image"):
    """A part of a turn that is a picture. `image` is the id of an artifact."""

    image: str


class SoundPart(msgspec.Struct, frozen=True, tag="audio"):
    """A part of a turn that is a sound. `audio` is the id of an artifact."""

    audio: str


class Turn(msgspec.Struct, frozen=True):
    """One turn of a dialogue: a text, or texts, pictures and sounds in their order."""

    role: Literal["system", "user", "assistant"]
    content: str | tuple[TextPart | ImagePart | SoundPart, ...]


class Chat(msgspec.Struct, frozen=True):
    """A dialogue to be answered. The worker renders it by the model's chat template."""

    messages: tuple[Turn, ...]


Prompt = Text | Chat

Grid = tuple[str | tuple[int, ...], ...]
"""The rows of a puzzle, top to bottom.

Each is a string with one character a cell, or a tuple with one number a cell.
"""

Halt = Literal["max", "q_halt"]
"""The end of a puzzle's row: its last permitted ACT segment, or where its q head says so."""


Overflow = Literal["truncate", "clamp", "refuse"]
"""The part that gives way when a prompt and `max_tokens` exceed the context window.

`truncate` cuts the prompt's beginning, `clamp` lowers `max_tokens`, and `refuse` refuses the
request. `clamp` refuses a prompt as well if it leaves no room for any answer.
"""


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """The parameters of sampling.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1.0 and `min_p` 0 do not cut. `n` choices are
    drawn for the prompt. Before `min_tokens` nothing ends a response: no end token, no stop.
    `logprobs` counts the likeliest tokens to report beside each chosen one; None reports nothing.
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


Effort = Literal["low", "medium", "high"]
"""A name for a depth. Each model says which depth it stands for."""

EFFORTS: tuple[Effort, ...] = ("low", "medium", "high")


class Depth(msgspec.Struct, frozen=True, omit_defaults=True):
    """The part of a recurrent model that a request runs: one of the three.

    `cycles` are the H and L cycles of HRM-Text, as 2x3, `max_steps` the most ACT segments, and
    `effort` a depth that the model names.
    """

    cycles: str | None = None
    max_steps: int | None = None
    effort: Effort | None = None


class Generate(msgspec.Struct, frozen=True, omit_defaults=True, tag="generate"):
    """Continue one prompt. A `condition` or `depth` of None is the model's default.

    At most the last `max_prompt_tokens` of the prompt are used. `overflow` is for a prompt that is
    still too long.
    """

    prompt: Prompt
    sampling: Sampling
    condition: str | None = None
    overflow: Overflow = "truncate"
    max_prompt_tokens: int | None = None
    depth: Depth | None = None


class Score(msgspec.Struct, frozen=True, omit_defaults=True, tag="score"):
    """Score each continuation of one context by its log-likelihood.

    A `condition`, `method` or `depth` of None is the model's default. With `rolling` a whole text
    of any length is scored: it is the only continuation, and the context is empty.
    """

    context: Text
    continuations: tuple[Text, ...]
    condition: str | None = None
    method: Literal["strict", "aios_compat"] | None = None
    rolling: bool = False
    depth: Depth | None = None


class Read(msgspec.Struct, frozen=True, omit_defaults=True, tag="read"):
    """Return the tokens of a prompt with their log-probabilities.

    The log-probability of each is conditional on the tokens before it. It is None where the model
    does not predict the token. The `num_top` likeliest tokens stand beside each. A `condition` or
    `depth` of None is the model's default.
    """

    prompt: Text
    num_top: int = 0
    condition: str | None = None
    depth: Depth | None = None


Select = Literal["first", "best_q", "mode", "verified"]
"""The answer among several samples of a puzzle.

It is the first sample, the one whose q head is surest, the grid that most samples have, or the first
that solves the puzzle by its rules.
"""

NoisyLatents = Literal["high", "all"]
"""The latents of a puzzle's row that get noise: z_H alone, or all of them."""


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of several samples of a puzzle: a row of its own, with noise of its own.

    Before each ACT segment normal noise of standard deviation `noise` is added to the `latents`. It
    is a function of `seed`, `number`, the segment and the element alone. The sample of number 0 has
    none.
    """

    number: int
    seed: int
    noise: float
    latents: NoisyLatents = "high"


class Augmentation(msgspec.Struct, frozen=True):
    """An augmentation of the ARC task `task_id`: another orientation, with the colours permuted.

    `number` counts the augmentations that the network was trained with. 0 is the task as it is.
    """

    task_id: str
    number: int


class Solve(msgspec.Struct, frozen=True, omit_defaults=True, tag="solve"):
    """Solve one puzzle, given as a grid or as the cells of a Sudoku in one string.

    `identifier` is the network's number or name for the family of the puzzle; None is the blank
    one. `max_steps` is the most ACT segments, or `effort` names that number; without both it is the
    number that the network was trained to. `halt` None is the model's default. Of a puzzle with
    several samples this is the `sample`, None without. One that `settles` the puzzle by solving it
    makes the samples behind it needless. With `shows_segments` each segment is told as progress.

    With an `augmentation` the puzzle is a grid of its ARC task, and `identifier` is left out. The
    network sees the grid augmented, and that is undone in the solution. A job whose task has no
    augmentation with that number ends without a solution.
    """

    puzzle: str | Grid
    identifier: int | str | None = None
    halt: Halt | None = None
    max_steps: int | None = None
    effort: Effort | None = None
    sample: Sample | None = None
    settles: bool = False
    shows_segments: bool = False
    augmentation: Augmentation | None = None


class Tokenize(msgspec.Struct, frozen=True, omit_defaults=True, tag="tokenize"):
    """Return the ids that `Generate` would read for the prompt, or those of a text by itself.

    Nothing is cut. `add_special_tokens` matters to texts alone: a chat's template writes the
    special tokens, and ids are used as they are. `with_texts` asks for the vocabulary's own
    spelling of each id.
    """

    prompt: Prompt
    add_special_tokens: bool = True
    with_texts: bool = False


class Detokenize(msgspec.Struct, frozen=True, omit_defaults=True, tag="detokenize"):
    """Return the text of token ids, with the names of special tokens in it or left out."""

    ids: tuple[int, ...]
    skip_special_tokens: bool = False


TooLong = Literal["truncate", "refuse"]
"""The fate of a text that exceeds the context window: it loses its end, or it is refused."""


class Embed(msgspec.Struct, frozen=True, omit_defaults=True, tag="embed"):
    """Return one vector for a text: the mean of the last hidden states of its tokens.

    With `normalize` the vector has length 1.
    """

    text: Text
    normalize: bool = True
    overflow: TooLong = "truncate"


class Classify(msgspec.Struct, frozen=True, omit_defaults=True, tag="classify"):
    """Return the labels that a classifier gives a text: the `top_k` likeliest, or all."""

    text: Text
    top_k: int | None = None
    overflow: TooLong = "truncate"


class OtherTask(msgspec.Struct, frozen=True):
    """Base of the tasks of plugins. Each has a tag of its own, its name."""


Task = Generate | Score | Read | Solve | Tokenize | Detokenize | Embed | Classify | OtherTask
BUILT_IN = (Generate, Score, Read, Solve, Tokenize, Detokenize, Embed, Classify)

TaskName = str
"""The tag of a task."""


def name_of(task: Task) -> TaskName:
    """Return the name of a task, which is its tag on the wire."""
    return str(task.__struct_config__.tag)
