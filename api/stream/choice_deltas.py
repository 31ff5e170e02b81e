"""Deltas of choices: what each event adds to a completion, and the end of each completion once."""

from collections.abc import Iterator

import msgspec

from api.stream.request_events import JobEvent, finish_reasons
from shared.messages import Done, TokenLogprob, Tokens


class ChoiceDelta(msgspec.Struct, frozen=True):
    """New tokens and text of the completion at `index`, which counts over all jobs.

    `finish_reason` is in the last delta of a completion, which may have nothing else.
    """

    index: int
    text: str = ""
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None


class ChoiceDeltas:
    """Makes deltas of events, and remembers which of the `n` completions of each job have ended."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._ended: set[int] = set()

    def of(self, job: int, event: JobEvent) -> Iterator[ChoiceDelta]:
        """Yield the deltas of an event of the job with this number."""
        if isinstance(event, Tokens):
            index = job * self._n + event.choice
            if event.finish_reason is not None:
                self._ended.add(index)
            yield ChoiceDelta(index, event.text, event.ids, event.logprobs, event.finish_reason)
        elif isinstance(event, Done):
            for index, reason in enumerate(finish_reasons(event), job * self._n):
                if index not in self._ended:
                    self._ended.add(index)
                    yield ChoiceDelta(index, finish_reason=reason)
