"""Progress of a batch while its network writes or listens, and the early end of unwanted rows."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from worker.engine.task_runner import BatchProgress

_REPORT_EVERY_S = 0.1
_MOST_CHARACTERS = 2000
"""The most characters of a text so far that are shown: its last ones."""
_FRAMES_A_SECOND = 100
"""The rate of Whisper's spectrograms."""


class Speech(Protocol):
    """The texts of Whisper's tokens. The times among these begin at the token `first_time`."""

    first_time: int

    def read(self, tokens: Sequence[int]) -> tuple[str, str]:
        """Return the text of the windows that were heard, which end in a time.

        The first part will stand in the transcript. The second one, often empty, may still change.
        """

    def guess(self, tokens: Sequence[int]) -> str:
        """Return the text of the beginning of a window."""

    def is_end(self, token: int) -> bool:
        """Return whether nothing is written behind a token."""


class Watch:
    """The watch over one call. `owners` are the positions of its rows' tasks in the batch."""

    def __init__(self, progress: BatchProgress, owners: Sequence[int]) -> None:
        self._progress = progress
        self._owners = owners

    def over_writing(self, tokenizer: Any) -> StoppingCriteriaList:
        """Return what `generate` calls after each token.

        It shows the text so far, and stops rows that nobody wants any more.
        """
        return StoppingCriteriaList([_Writing(self._progress, self._owners, tokenizer)])

    def over_listening(self, speech: Speech, num_frames: Sequence[int]) -> "Listening":
        """Return the watch over Whisper, which hears sounds of so many frames."""
        return Listening(self._progress, self._owners, speech, num_frames)


class _Writing(StoppingCriteria):
    def __init__(self, progress: BatchProgress, owners: Sequence[int], tokenizer: Any) -> None:
        self._progress = progress
        self._owners = owners
        self._tokenizer = tokenizer
        self._num_given: int | None = None
        self._reported_s = time.monotonic()

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Return which of the rows [B x beams] are to be stopped, given all ids [B x beams, T]."""
        self._progress.heartbeat()
        if self._num_given is None:
            self._num_given = input_ids.shape[1] - 1
        num_beams = len(input_ids) // len(self._owners)
        unwanted = []
        for owner in self._owners:
            unwanted += [not self._progress.is_wanted(owner)] * num_beams
        now_s = time.monotonic()
        # The first of several beams may be given up: its text is not shown.
        if num_beams == 1 and now_s >= self._reported_s + _REPORT_EVERY_S:
            self._reported_s = now_s
            self._report(input_ids[:, self._num_given :])
        return torch.tensor(unwanted, device=input_ids.device)

    def _report(self, written: Tensor) -> None:
        for owner, row in zip(self._owners, written, strict=True):
            text = self._tokenizer.decode(row, skip_special_tokens=True).strip()
            self._progress.report(owner, len(row), note=text[-_MOST_CHARACTERS:])


@dataclass
class _Sound:
    """A sound, and the tokens of its windows that were heard.

    The text of these is `settled`, then `open`. That of this window is `likeliest` once it has an
    end.
    """

    owner: int
    seconds: int
    done_s: int = 0
    tokens: list[int] = field(default_factory=list)
    settled: str = ""
    open: str = ""
    likeliest: str | None = None


class Listening(StoppingCriteria):
    """The watch over one call of Whisper, which hears sounds window by window.

    It shows the seconds that were heard and the words so far, and stops sounds that nobody wants
    any more. Sounds that were heard to their end leave the batch. So the rows of a step are those
    of the sounds in `_active`, each with equally many beams, the likeliest first.
    """

    def __init__(
        self,
        progress: BatchProgress,
        owners: Sequence[int],
        speech: Speech,
        num_frames: Sequence[int],
    ) -> None:
        self._progress = progress
        self._speech = speech
        self._sounds: list[_Sound] = []
        for owner, frames in zip(owners, num_frames, strict=True):
            self._sounds.append(_Sound(owner, seconds=-(-frames // _FRAMES_A_SECOND)))
        self._active: list[_Sound] = []
        self._num_given = 0
        self._num_ids = 0
        self._is_retry = False
        self._reported_s = time.monotonic()

    def begin_window(self, frames: Tensor) -> None:
        """Begin the next window, given [B, 2] of frames: heard, and all."""
        self._progress.heartbeat()
        before = self._active
        self._active = []
        for sound, (heard, total) in zip(self._sounds, frames.tolist(), strict=True):
            # What is shorter than a window is followed by silence.
            sound.done_s = min(heard // _FRAMES_A_SECOND, sound.seconds)
            if heard >= total:
                sound.done_s = sound.seconds
            else:
                self._active.append(sound)
        for sound in before:
            self._report(sound, "")
        self._num_given = 0
        self._num_ids = 0
        self._is_retry = False

    def end_window(self, sequences: Sequence[Tensor], is_skipped: Sequence[bool]) -> None:
        """Note the tokens that were chosen of each active sound. Silence is skipped."""
        for sound, tokens, skipped in zip(self._active, sequences, is_skipped, strict=True):
            sound.likeliest = None
            if skipped:
                continue
            kept = _kept(tokens.tolist(), self._speech.first_time)
            sound.tokens += kept
            if kept and kept[-1] >= self._speech.first_time:
                sound.settled, sound.open = self._speech.read(sound.tokens)
            else:
                # The next window may add to the last word.
                sound.open += self._speech.guess(kept)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Return which of the rows [A x beams] are to be stopped, given all ids [A x beams, T]."""
        self._progress.heartbeat()
        num_rows, num_ids = input_ids.shape
        if self._num_given == 0:
            self._num_given = num_ids - 1
        elif num_ids <= self._num_ids:
            self._is_retry = True
        self._num_ids = num_ids

        num_beams, num_others = divmod(num_rows, len(self._active))
        if self._is_retry or num_others:
            # Whisper was not sure of some sounds, and writes the window of these again.
            return torch.zeros(num_rows, dtype=torch.bool, device=input_ids.device)
        unwanted = []
        for sound in self._active:
            unwanted += [not self._progress.is_wanted(sound.owner)] * num_beams

        self._look(input_ids[::num_beams, self._num_given :])
        return torch.tensor(unwanted, device=input_ids.device)

    def _look(self, written: Tensor) -> None:
        """Report the words of the likeliest beams [A, T] of this window, unless it is too early."""
        # Behind the end of the likeliest beam, others are written to their ends.
        for sound, row, last in zip(self._active, written, written[:, -1].tolist(), strict=True):
            if sound.likeliest is None and self._speech.is_end(last):
                sound.likeliest = self._speech.guess(row.tolist())

        now_s = time.monotonic()
        if now_s < self._reported_s + _REPORT_EVERY_S:
            return
        self._reported_s = now_s
        for sound, row in zip(self._active, written, strict=True):
            guess = sound.likeliest
            if guess is None:
                guess = self._speech.guess(row.tolist())
            self._report(sound, guess)

    def _report(self, sound: _Sound, guess: str) -> None:
        text = (sound.settled + sound.open + guess).strip()
        note = text[-_MOST_CHARACTERS:]
        self._progress.report(
            sound.owner,
            sound.done_s,
            sound.seconds,
            note,
            num_left_out=len(text) - len(note),
            num_settled=len(sound.settled.strip()),
        )


def _kept(tokens: list[int], first_time: int) -> list[int]:
    """Return the tokens that Whisper keeps of a window.

    The next window begins at the last pair of times, the end of a segment and the start of the next
    one, unless this window ends with a single time.
    """
    is_time = [token >= first_time for token in tokens]
    if is_time[-2:] == [False, True]:
        return tokens
    for position in range(len(tokens) - 1, 0, -1):
        if is_time[position - 1] and is_time[position]:
            return tokens[: position + 1]
    return tokens
