"""Generate the streams of docs/events.md from the pairs of requests and answers that tests replay.

    python -m scripts.tools.events_page

Run this after a stream was added or changed. A test compares the page with the output.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from scripts.tools.generated_pages import page_with
from shared.shipped import REPO_ROOT

PAGE = REPO_ROOT / "docs" / "events.md"
PAIRS = REPO_ROOT / "tests" / "api" / "golden"
STREAMS_MARK = "streams: made by python -m scripts.tools.events_page"

_NUMBERS = re.compile(r"^[A-Z]\d[^:]*: ")
"""Numbers of requirements before a title: they mean something to tests alone."""
_MOST_CHARACTERS = 400


@dataclass(frozen=True)
class StreamExample:
    """A request, and the stream that answers it as the bytes are on the wire."""

    title: str
    request: str
    body: str
    stream: str

    def part(self) -> str:
        """Return the part of the page about this stream."""
        text = f"#### {self.title}\n\n```http\n{self.request}\n\n{_shortened(self.body)}\n\n"
        for line in self.stream.splitlines():
            text += f"{_shortened(line)}\n"
        return f"{text}```\n"


def examples() -> Iterator[StreamExample]:
    """Yield all streams of events among the pairs, in the order of their files."""
    for file in sorted(PAIRS.glob("*.http")):
        for block in file.read_text(encoding="utf-8").split("### ")[1:]:
            title, _, rest = block.partition("\n")
            request, body, outcome, answer = rest.split("\n\n", 3)
            if outcome == "200 text/event-stream":
                title = _NUMBERS.sub("", title).removeprefix("and ")
                # Names of the wire, as include_usage, stay as they are.
                if title.split()[0].rstrip(",:").isalpha():
                    title = title[0].upper() + title[1:]
                yield StreamExample(title, request, body=body, stream=answer.rstrip("\n"))


def _shortened(line: str) -> str:
    """Return a line that is not too long to be read."""
    if len(line) <= _MOST_CHARACTERS:
        return line
    return line[:_MOST_CHARACTERS] + "…"


def streams_section() -> str:
    """Return the streams of all paths, those of one path together."""
    by_path: dict[str, list[StreamExample]] = {}
    for example in examples():
        path = example.request.splitlines()[0]
        by_path.setdefault(path, []).append(example)
    text = ""
    for path, having in by_path.items():
        text += f"### {path}\n\n"
        for example in having:
            text += example.part() + "\n"
    return text


def page() -> str:
    """Return docs/events.md as it should be."""
    return page_with(streams_section(), PAGE.read_text(encoding="utf-8"), STREAMS_MARK)


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
