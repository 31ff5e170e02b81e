"""The examples of the docs: commands in `console` blocks, each with what it prints, where `…` stands for anything."""

import re
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"^\$ (.+(?:\\\n.*)*)\n", re.MULTILINE)


@dataclass(frozen=True)
class Example:
    command: str
    expected: str

    def fits(self, output: str) -> bool:
        """Whether that is what it should print, white space apart."""
        parts = map(re.escape, map(_bare, self.expected.split("…")))
        return re.fullmatch(".*".join(parts), _bare(output), re.DOTALL) is not None


def examples_of(page: Path) -> list[Example]:
    """In their order."""
    found = []
    for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        _, *parts = _COMMAND.split(block)
        found += [Example(command, output) for command, output in zip(parts[::2], parts[1::2], strict=True)]
    return found


def _bare(text: str) -> str:
    return re.sub(r"\s+", "", text)
