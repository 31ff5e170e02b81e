"""docs/events.md shows every stream of the golden pairs, and its tables name all their events."""

import re

from scripts.tools.events_page import PAGE, STREAMS_MARK, examples, page
from shared.queue.webhooks import EVENT_TYPES
from shared.shipped import REPO_ROOT
from tests.api.golden import pairs

WEBHOOKS = (REPO_ROOT / "docs" / "webhooks.md").read_text(encoding="utf-8")
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


def rows_below(heading: str) -> str:
    """Return the first column of the first table below a heading of the page on webhooks."""
    section = WEBHOOKS.partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    return "".join(re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE))


def test_the_page_on_webhooks_names_every_type_of_event() -> None:
    assert re.findall(r"`([\w.]+)`", rows_below("## Events")) == list(EVENT_TYPES)


def test_the_page_on_webhooks_names_every_reason_of_a_failed_attempt() -> None:
    source = ""
    for file in sorted((REPO_ROOT / "shared" / "webhooks").glob("*.py")):
        source += file.read_text(encoding="utf-8")
    refused = re.findall(r"TargetRefused\(\s*\"(\w+)\"", source)
    failed = re.findall(r"error = \"(\w+)\"", source)
    assert len(refused) > 3
    assert len(failed) > 3
    told = re.findall(r"`(\w+)`", rows_below("## Delivery"))
    assert set(told) - {"error"} == {*refused, *failed}
