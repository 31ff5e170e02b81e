"""The examples of the docs: what stands in their fenced blocks, run as a reader would, and what it
is said to print.

In `console` blocks that is what stands behind each command; in Python and JavaScript it is the
lines that are comments; `…` stands for anything. Where nothing is told, and in `sh` blocks, the
commands must do well.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(console|sh|python|js)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PROMPTED = re.compile(r"^\$ ((?:.*\\\n)*.*)\n", re.MULTILINE)
_LINE = re.compile(r"^(?![#\s])((?:.*\\\n)*.*)\n", re.MULTILINE)
_COMMENT = re.compile(r"^(?:#|//) ?(.*)$", re.MULTILINE)
_END = "end-of-an-example"
_PATIENCE_S = 300  # lm-evaluation-harness takes its time to load


_KEEP_ALIVE = re.compile(r"^: keep-alive$", re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """`expected` is None where nothing is told."""

    command: str
    expected: str | None

    def fits(self, output: str) -> bool:
        """Return whether that is what it should print, white space apart.

        A stream has a keep-alive wherever nothing came for a while, which a busy machine decides.
        """
        if self.expected is None:
            return True
        expected = _KEEP_ALIVE.sub("", self.expected)
        output = _KEEP_ALIVE.sub("", output)
        parts = map(re.escape, map(_bare, expected.split("…")))
        return re.fullmatch(".*".join(parts), _bare(output), re.DOTALL) is not None


@dataclass(frozen=True)
class Block:
    """Commands of one shell, or a program."""

    page: str
    language: str
    examples: tuple[Example, ...]


def blocks_of(page: str) -> Iterator[Block]:
    """In their order; `page` is relative to the repository."""
    for language, text in _BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        yield Block(page, language, tuple(_examples(language, text)))


def _examples(language: str, text: str) -> Iterator[Example]:
    if language == "console":
        _, *parts = _PROMPTED.split(text)
        yield from map(Example, parts[::2], parts[1::2])
    elif language == "sh":
        yield from (Example(command, None) for command in _LINE.findall(text))
    else:
        yield Example(text, "\n".join(_COMMENT.findall(text)) or None)


def outputs(
    block: Block, place: Path, replaced: Mapping[str, str], environ: Mapping[str, str]
) -> list[str]:
    """What each example of the block prints. All must do well, in `place`: an empty directory,
    which gets links to what lies in the repository."""
    for entry in ROOT.iterdir():
        (place / entry.name).symlink_to(entry)
    commands = [example.command for example in block.examples]
    if block.language in ("console", "sh"):
        script = "\n".join(f"{command}\nprintf '\\n{_END}\\n'" for command in commands)
        program = ["bash", "-ec", script]
        (place / ".curlrc").write_text("" if block.language == "console" else "fail-with-body\n")
    elif block.language == "python":
        program = [sys.executable, "-c", *commands]
    else:
        program = ["node", "--input-type=module", "-e", *commands]
        place = ROOT / "tests" / "e2e" / "node"  # where its modules are found
    for name, value in replaced.items():
        program[-1] = program[-1].replace(name, value)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "CURL_HOME": str(place)}
    env = os.environ | own | dict(environ)
    done = subprocess.run(
        program,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
        cwd=place,
        env=env,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split(f"\n{_END}\n")[: len(commands)]


def _bare(text: str) -> str:
    return re.sub(r"\s+", "", text)
