"""Frames of text-generation-inference from events as real workers send them: several tokens at
once, held-back text."""

import pytest

from api.routes.tgi import TgiFrames
from api.schemas.tgi import TgiNotes
from api.stream.request_events import JobEvent
from shared.messages import Done, Started, TokenLogprob, Tokens

EOS = 2
GREEDY = TgiNotes("", False, False, 0, None)
STOPPING = TgiNotes("", False, True, 0, None)


def said(*tokens: tuple[int, str], text: str | None = None, reason: str | None = None) -> Tokens:
    """Tokens with the texts they add; `text` is what became certain with them."""
    logprobs = tuple(TokenLogprob(-1.0, token) for _, token in tokens)
    certain = "".join(token for _, token in tokens) if text is None else text
    return Tokens(tuple(id for id, _ in tokens), certain, 0, logprobs, reason)


END = Done("stop", 4, 3)
CASES: list[tuple[TgiNotes, list[JobEvent], list[tuple[int, str, bool]], str]] = [
    (
        GREEDY,
        [said((5, "a"), (6, "b")), said((EOS, ""), reason="stop")],
        [(5, "a", False), (6, "b", False), (EOS, "", True)],
        "eos_token",
    ),
    (
        GREEDY,
        [said((5, "a"), (EOS, ""), reason="stop")],
        [(5, "a", False), (EOS, "", True)],
        "eos_token",
    ),
    (
        GREEDY,
        [said((5, "")), said((6, "ü"), reason="length")],
        [(5, "", False), (6, "ü", False)],
        "length",
    ),
    (
        STOPPING,
        [said((5, "EN"), text=""), said((6, "D"), text="", reason="stop")],
        [(5, "", False), (6, "", False)],
        "stop_sequence",
    ),
    (
        STOPPING,
        [said((5, "EN"), text=""), said((6, "x"), text="ENx", reason="stop")],
        [(5, "", False), (6, "ENx", False)],
        "stop_sequence",
    ),
    (GREEDY, [said((5, "a")), END], [(5, "a", False), (5, "", True)], "eos_token"),
    (GREEDY, [END], [(0, "", True)], "eos_token"),
]


@pytest.mark.parametrize(("notes", "events", "tokens", "reason"), CASES)
def test_frames(
    notes: TgiNotes, events: list[JobEvent], tokens: list[tuple[int, str, bool]], reason: str
) -> None:
    telling = TgiFrames(notes)
    frames = [frame for event in [Started(1, "w", 4), *events] for frame in telling.of(0, event)]
    shown = [
        (frame["token"]["id"], frame["token"]["text"], frame["token"]["special"])
        for frame in frames
    ]
    assert shown == tokens
    assert [frame["generated_text"] for frame in frames[:-1]] == [None] * (len(frames) - 1)
    assert frames[-1]["generated_text"] == "".join(text for _, text, _ in tokens)
    assert frames[-1]["details"]["finish_reason"] == reason
    assert frames[-1]["details"]["input_length"] == 4
