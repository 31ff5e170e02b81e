"""Frames of text-generation-inference, rendered from events as real workers send them.

Such an event may bring several tokens at once, or hold text back that may begin a stop string."""

from typing import Any

import pytest

from api.routes.tgi import TgiFrames
from api.schemas.tgi import TgiNotes
from api.stream.request_events import JobEvent
from shared.messages import Done, Started, TokenLogprob, Tokens

EOS = 2
GREEDY = TgiNotes(prefix="", has_details=False, has_stops=False, top_n=0, seed=None)
STOPPING = TgiNotes(prefix="", has_details=False, has_stops=True, top_n=0, seed=None)


def event_of(
    *tokens: tuple[int, str], text: str | None = None, reason: str | None = None
) -> Tokens:
    """Return an event with these tokens, each an id and the text that it adds.

    `text` is the text that has become certain with them, if that is not the text of all."""
    ids = []
    texts = []
    logprobs = []
    for id, token_text in tokens:
        ids.append(id)
        texts.append(token_text)
        logprobs.append(TokenLogprob(-1.0, token_text))

    if text is None:
        text = "".join(texts)
    return Tokens(tuple(ids), text, logprobs=tuple(logprobs), finish_reason=reason)


END = Done("stop", 4, 3)
CASES: list[tuple[TgiNotes, list[JobEvent], list[tuple[int, str, bool]], str]] = [
    (
        GREEDY,
        [event_of((5, "a"), (6, "b")), event_of((EOS, ""), reason="stop")],
        [(5, "a", False), (6, "b", False), (EOS, "", True)],
        "eos_token",
    ),
    (
        GREEDY,
        [event_of((5, "a"), (EOS, ""), reason="stop")],
        [(5, "a", False), (EOS, "", True)],
        "eos_token",
    ),
    (
        GREEDY,
        [event_of((5, "")), event_of((6, "ü"), reason="length")],
        [(5, "", False), (6, "ü", False)],
        "length",
    ),
    (
        STOPPING,
        [event_of((5, "EN"), text=""), event_of((6, "D"), text="", reason="stop")],
        [(5, "", False), (6, "", False)],
        "stop_sequence",
    ),
    (
        STOPPING,
        [event_of((5, "EN"), text=""), event_of((6, "x"), text="ENx", reason="stop")],
        [(5, "", False), (6, "ENx", False)],
        "stop_sequence",
    ),
    (GREEDY, [event_of((5, "a")), END], [(5, "a", False), (5, "", True)], "eos_token"),
    (GREEDY, [END], [(0, "", True)], "eos_token"),
]


@pytest.mark.parametrize(("notes", "events", "tokens", "reason"), CASES)
def test_frames(
    notes: TgiNotes, events: list[JobEvent], tokens: list[tuple[int, str, bool]], reason: str
) -> None:
    renderer = TgiFrames(notes)
    frames: list[dict[str, Any]] = []
    for event in [Started(1, "w", 4), *events]:
        frames += renderer.of(0, event)

    rendered_tokens = []
    for frame in frames:
        token = frame["token"]
        rendered_tokens.append((token["id"], token["text"], token["special"]))
    assert rendered_tokens == tokens

    *earlier, last = frames
    for frame in earlier:
        assert frame["generated_text"] is None
    assert last["generated_text"] == "".join(text for _, text, _ in tokens)
    assert last["details"]["finish_reason"] == reason
    assert last["details"]["input_length"] == 4
