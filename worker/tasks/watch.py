"""Progress of a batch while its network writes or listens, and the early end of unwanted rows."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from worker.engine.task_runner import BatchProgress

_REPORT_EVERY_S = 0.1
_MOST_CHARACTERS = 2000
"""The most characters of a text so far that are shown: its last ones."""
_FRAMES_A_SECOND = 100
"""The rate of Whisper's spectrograms."""


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

    def over_listening(self) -> Callable[[Tensor], None]:
        """Return what Whisper calls before each window, with [B, 2] of frames: heard, and all.

        It shows the seconds that were heard, of sounds of several windows.
        """

        def note(frames: Tensor) -> None:
            self._progress.heartbeat()
            for owner, (heard, total) in zip(self._owners, frames.tolist(), strict=True):
                if heard:
                    seconds = -(-total // _FRAMES_A_SECOND)
                    self._progress.report(owner, heard // _FRAMES_A_SECOND, seconds, "seconds")

        return note


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
