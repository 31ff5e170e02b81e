"""The jobs that a worker has in hand, from the take to their end.

The ledger belongs to the event loop.
"""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from msgspec.structs import replace

from shared.messages import Event, Progress
from shared.queue.leases import Claim
from worker.host.job_span import UNTRACED, JobSpan


@dataclass(eq=False)
class Entry:
    """A job in hand: the last index of its log, and the news that the outbox will append.

    `since_s` is the time of the oldest news. `on_logged` is called once all of them are in the log.
    `reached` is the farthest progress that was logged or is among the news. A job whose end is on
    its way to the log `is_ending`.
    """

    claim: Claim
    index: int
    job_span: JobSpan
    news: list[Event] = field(default_factory=list)
    since_s: float = 0.0
    on_logged: Callable[[], None] | None = None
    reached: tuple[int, int] = (0, 0)
    is_ending: bool = False

    def note_progress(self, progress: Progress) -> None:
        """Add a progress to the news, in place of an older one.

        The segments of a puzzle are told one by one.
        """
        # A run that begins again after a takeover at first repeats known progress.
        if progress.reached <= self.reached:
            return
        self.reached = progress.reached
        if self.news and isinstance(self.news[-1], Progress) and progress.segment is None:
            older = self.news.pop()
            if isinstance(older, Progress) and not progress.preview:
                # A preview comes seldom, and must not go unseen.
                progress = replace(progress, preview=older.preview)
        self.news.append(progress)


class Ledger:
    """The jobs in hand by the keys of their claims.

    `on_closed(claim, was_stale)` is called once for every job that was opened: when its end is
    logged, or when the job is no longer this worker's (`was_stale`).
    """

    def __init__(self, on_closed: Callable[[Claim, bool], None]) -> None:
        self._on_closed = on_closed
        self._entries: dict[str, Entry] = {}
        self._num_new: Counter[str] = Counter()

    @property
    def entries(self) -> Collection[Entry]:
        return self._entries.values()

    @property
    def claims(self) -> list[Claim]:
        """Return every job in hand."""
        return [entry.claim for entry in self._entries.values()]

    def claims_of(self, model: str) -> list[Claim]:
        """Return the jobs in hand of one model."""
        return [claim for claim in self.claims if claim.job.model == model]

    def by_model(self) -> dict[str, list[Claim]]:
        """Return the jobs in hand of each model that has any."""
        claims: dict[str, list[Claim]] = {}
        for claim in self.claims:
            claims.setdefault(claim.job.model, []).append(claim)
        return claims

    def get(self, key: str) -> Entry | None:
        """Return the job of a claim with this key, None if it is no longer in hand."""
        return self._entries.get(key)

    def open(self, claim: Claim, job_span: JobSpan = UNTRACED) -> None:
        """Add a job that was taken."""
        # An earlier take of the job by this same worker has another key. It is stale now, and is
        # closed when its next append is refused.
        self._entries[claim.key] = Entry(claim, claim.last_index, job_span)
        if claim.epoch == 1:
            self._num_new[claim.job.model] += 1

    def count_new(self) -> Counter[str]:
        """Return the jobs that were opened since the last call, by model.

        Jobs that another take had held before are left out.
        """
        num_new = self._num_new
        self._num_new = Counter()
        return num_new

    def note_progress(self, claim: Claim, progress: Progress) -> None:
        """Note the progress that a job had made on another worker."""
        entry = self._entries.get(claim.key)
        if entry is not None:
            entry.reached = max(entry.reached, progress.reached)

    def finish(self, entry: Entry) -> None:
        """Forget a job whose end is in the log."""
        del self._entries[entry.claim.key]
        entry.job_span.published()
        self._on_closed(entry.claim, False)

    def close(self, claim: Claim, reason: str) -> None:
        """Forget a job that is no longer this worker's. `reason` is for its trace."""
        entry = self._entries.pop(claim.key, None)
        if entry is not None:
            entry.job_span.dropped(reason)
            self._on_closed(claim, True)

    def lapse(self, claim: Claim) -> None:
        """Forget a job whose lease could not be renewed.

        If its end is on its way, the lease may be gone because the end is in the log already: the
        answer to the append will tell.
        """
        entry = self._entries.get(claim.key)
        if entry is not None and not entry.is_ending:
            self.close(claim, "lapsed")

    def ended(self, job_id: str) -> None:
        """Forget every take of a job that was ended elsewhere."""
        for claim in self.claims:
            if claim.job.id == job_id:
                self.close(claim, "ended_elsewhere")
