"""The output of a run: lines of JSON, and beside it what the run began with.

A run that was ended, however that came, goes on from its output: what has a line there is not
computed again.
"""

import json
import os
import secrets
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from scripts.cli.fleet_tool import ToolError
from scripts.cli.runs.tally import Tally

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".run"
"""The end of the name of the header's file, which begins with that of the output.

It is not `.json`, as the output may lie in a directory of ARC tasks.
"""
_REMEDY = "give another file for the output, or --restart to begin anew"

Id = TypeVar("Id", bound=Hashable)


@dataclass(frozen=True)
class RunHeader:
    """The beginning of a run.

    `options` decide the answers, and `sha256` is that of the input, or "" for one that may grow: a
    run that goes on must have the same. Requests are named by `id`, so no other run gets the
    answers of this one.
    """

    sha256: str
    options: Mapping[str, Any]
    id: str = field(default_factory=lambda: secrets.token_hex(8))


class Output(Generic[Id]):
    """The output of a run, open for more lines.

    `id_of` returns what a line answers, and `done` are these ids. `tally` sums up all lines; both
    raise ValueError, TypeError or KeyError for a line of something else. Raises ToolError if the
    output is of a run with another header, or of one that writes it now.
    """

    def __init__(
        self,
        path: Path,
        header: RunHeader,
        tally: Tally,
        id_of: Callable[[Mapping[str, Any]], Id],
        *,
        restarts: bool = False,
    ) -> None:
        self.path = path
        self.header = header
        self.done: set[Id] = set()
        self._tally = tally
        self._id_of = id_of
        self._header_path = path.with_name(path.name + SUFFIX)
        is_new = not path.exists()
        try:
            self._stream = path.open("ab")
        except OSError as error:
            raise ToolError(f"{path}: {error.strerror}") from None
        try:
            self._lock()
            # A run may have been killed between its first two files.
            is_new = is_new or (path.stat().st_size == 0 and not self._header_path.exists())
            if is_new or restarts:
                self._begin()
            else:
                self._go_on()
        except BaseException:
            self._stream.close()
            raise

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append lines, at once."""
        text = ""
        for line in lines:
            text += json.dumps(line, ensure_ascii=False) + "\n"
        self._stream.write(text.encode())
        self._stream.flush()
        for line in lines:
            self._count(line)

    def arrange(self, place_of: Callable[[Mapping[str, Any]], int | None]) -> None:
        """Put the lines in the order of their places, without those that have none.

        The output is whole at any moment. No line can be written afterwards.
        """
        places: list[tuple[int, int, int]] = []
        offset = 0
        with self.path.open("rb") as lines:
            for line in lines:
                place = place_of(json.loads(line))
                if place is not None:
                    places.append((place, offset, len(line)))
                offset += len(line)

            arranged = self.path.with_name(self.path.name + ".arranged")
            with arranged.open("wb") as out:
                for _, offset, length in sorted(places):
                    lines.seek(offset)
                    out.write(lines.read(length))
        self._stream.close()
        os.replace(arranged, self.path)

    def close(self) -> None:
        self._stream.close()

    def _lock(self) -> None:
        """Hold the output until it is closed. Raise ToolError if another run holds it."""
        if fcntl is None:
            return
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ToolError(f"{self.path}: another run writes it now") from None

    def _begin(self) -> None:
        self._stream.truncate(0)
        self._header_path.write_text(json.dumps(asdict(self.header)) + "\n", encoding="utf-8")

    def _go_on(self) -> None:
        """Take the run's own header, and count the lines that are there."""
        begun = self._read_header()
        if begun.sha256 != self.header.sha256:
            raise ToolError(f"{self.path} is of another input: {_REMEDY}")
        for name in {**begun.options, **self.header.options}:
            before = begun.options.get(name)
            now = self.header.options.get(name)
            if now != before:
                raise ToolError(
                    f"{self.path} is of a run with {_shown(name, before)}, and this one has "
                    f"{_shown(name, now)}: give the same options, {_REMEDY}"
                )
        self.header = begun
        self._count_lines()

    def _read_header(self) -> RunHeader:
        try:
            return RunHeader(**json.loads(self._header_path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise ToolError(
                f"{self.path} is there, but not {self._header_path.name} with the options of its "
                f"run: {_REMEDY}"
            ) from None

    def _count_lines(self) -> None:
        """Count the lines. A last line that was torn is completed or, if that cannot be, removed.

        Raise ToolError for a line in front of it that is none of an output.
        """
        offset = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                is_torn = not line.endswith(b"\n")
                try:
                    self._count(json.loads(line))
                except (ValueError, TypeError, KeyError):
                    if is_torn:
                        self._stream.truncate(offset)
                        return
                    problem = f"expected a line of an answer: {_REMEDY}"
                    raise ToolError(f"{self.path}: line {number}: {problem}") from None
                if is_torn:
                    self._stream.write(b"\n")
                offset += len(line)

    def _count(self, line: Mapping[str, Any]) -> None:
        self.done.add(self._id_of(line))
        self._tally.add(line)


def _shown(name: str, value: Any) -> str:
    if value is None:
        return f"no {name}"
    return f"{name} {value}"
