"""Results of tasks: the `result` of a job's `Done`, written by workers and read by fronts.

Part of `shared.messages`, which has the rules of the wire. Tasks may share a form of result, whose
tag is the name of the first.
`Read` has no result: it yields tokens only.
"""

import msgspec

from shared.tasks.specs import Grid


class ArtifactRef(msgspec.Struct, frozen=True, omit_defaults=True):
    """A reference to an artifact, in inputs, results and events of tasks.

    `digest` is the SHA-256 of its bytes, in hex.
    """

    id: str
    media_type: str
    num_bytes: int
    digest: str = ""
    name: str = ""


class Generated(msgspec.Struct, frozen=True, omit_defaults=True, tag="generate"):
    """An answer in tokens, without the tokens themselves. It is left out where all is default.

    `finish_reasons` are those of several choices. `q_values` are (q_halt, q_continue) of the state
    that gave each choice its last token, for a model with a q head. Where a prompt ends in the
    middle of a character, the first choice completes it: the last `num_amended` characters of the
    prompt's own text stand for that character.
    """

    finish_reasons: tuple[str, ...] = ()
    q_values: tuple[tuple[float, float] | None, ...] = ()
    num_amended: int = 0


class ContinuationScore(msgspec.Struct, frozen=True):
    """The score of a continuation: the sum of its tokens' log-probabilities, in nats.

    `is_greedy` tells whether greedy decoding would have chosen the same tokens.
    """

    log_likelihood: float
    num_tokens: int
    is_greedy: bool


class Scored(msgspec.Struct, frozen=True, tag="score"):
    """One score for each continuation, in order."""

    scores: tuple[ContinuationScore, ...]


class Solution(msgspec.Struct, frozen=True, omit_defaults=True, tag="solve"):
    """The answer to a puzzle after `steps` ACT segments, and the judgement of the q head.

    `confidence` is sigmoid(q_halt), the network's own probability that the grid is right;
    `is_halted` tells whether the network would halt there. `is_valid` tells whether the grid solves
    the puzzle by its rules and, in a maze, `is_shortest` whether no way is shorter; None is not
    known.
    """

    grid: Grid
    confidence: float
    steps: int
    is_halted: bool
    is_valid: bool | None = None
    is_shortest: bool | None = None


class Segment(msgspec.Struct, frozen=True):
    """The state of a puzzle after one ACT segment.

    `changed` are (row, column) of the cells that differ from the segment before or, in the first
    one, from the puzzle. They count from 0 in the network's field, whose corner a grid fills.
    """

    grid: Grid
    q_halt: float
    q_continue: float
    changed: tuple[tuple[int, int], ...]


class Tokenized(msgspec.Struct, frozen=True, omit_defaults=True, tag="tokenize"):
    """The ids of a prompt and, if asked for, the vocabulary's spelling of each."""

    ids: tuple[int, ...]
    texts: tuple[str, ...] = ()


class Detokenized(msgspec.Struct, frozen=True, tag="detokenize"):
    text: str


class Embedded(msgspec.Struct, frozen=True, tag="embed"):
    """A vector, as little-endian float32 (`shared.tasks.vectors`)."""

    vector: bytes


class Label(msgspec.Struct, frozen=True):
    """A class that an input may belong to.

    `score` is its probability, or the value itself where the network estimates one.
    """

    name: str
    score: float


class Labelled(msgspec.Struct, frozen=True, tag="classify"):
    """The classes of a text, a picture or a sound, likeliest first."""

    labels: tuple[Label, ...]


class OtherResult(msgspec.Struct, frozen=True):
    """Base of the results of plugins. The tag of each is its task's name."""


Result = Generated | Scored | Solution | Tokenized | Detokenized | Embedded | Labelled | OtherResult
BUILT_IN = (Generated, Scored, Solution, Tokenized, Detokenized, Embedded, Labelled)
