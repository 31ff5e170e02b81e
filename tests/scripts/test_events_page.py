"""docs/events.md shows every stream of the golden pairs, and its tables name all their events."""

import re

from scripts.tools.events_page import PAGE, STREAMS_MARK, examples, page
from tests.api.golden import pairs

KIND = re.compile(r'^event: (\w+)|"object":"([\w.]+)"|"type":"(transcript[\w.]+)"', re.MULTILINE)


def test_it_is_that_of_today() -> None:
    """The page is up to date; `python -m scripts.tools.events_page` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_all_streams_of_the_pairs_are_shown() -> None:
    shown = set()
    for example in examples():
        shown.add((example.request.splitlines()[0], example.stream))
    streams = set()
    for pair in pairs():
        if pair.media_type == "text/event-stream":
            streams.add((f"{pair.method} {pair.path}", pair.answer))
    assert shown == streams


def test_the_tables_name_every_kind_of_event() -> None:
    tables, _, _ = PAGE.read_text(encoding="utf-8").partition(STREAMS_MARK)
    kinds = set()
    for example in examples():
        for found in KIND.findall(example.stream):
            kinds.add("".join(found))
    assert {"token", "done", "progress", "solve.segment", "transcript.text.delta"} <= kinds
    for kind in kinds:
        assert f"`{kind}`" in tables or f'": "{kind}"`' in tables, kind
