"""Jobs that the app follows in threads, so that no page waits for them."""

import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import closing

from scripts.ui.client import Body, Client, Frame, ServerError, message_of

# A browser asks for the pages in its background once a minute, and a reload takes seconds.
_LEFT_S = 90.0


class Run:
    """A job, and what has come of it so far.

    The thread appends to `frames`; pages read them, and call `watch` for as long as somebody looks.
    When nobody does any more the thread ends, and with it the connection: the fleet then cancels
    the job. After the end `job` is the job's last state, with its usage and timings, and `error`
    says what went wrong, "" if nothing did.

    `is_done` changes only with a call of `watch`. Otherwise one part of a page could be drawn as
    that of a run that goes on, and the next one as that of a run that has ended.
    """

    def __init__(self, client: Client, job_id: str) -> None:
        self.job_id = job_id
        self.frames: list[Body] = []
        self.job: Body = {}
        self.error = ""
        self.is_done = False
        self._client = client
        self._has_ended = False
        self._watched_at = time.monotonic()
        threading.Thread(target=self._follow, name=f"run-{job_id}", daemon=True).start()

    @property
    def is_cancelled(self) -> bool:
        return self.job.get("state") == "cancelled"

    def watch(self) -> None:
        """Note that somebody looks at the run, and whether it is done by now."""
        self._watched_at = time.monotonic()
        self.is_done = self._has_ended

    def cancel(self) -> None:
        """Cancel the job. Raise ServerError if the server does not take that."""
        self._client.cancel(self.job_id)

    def _follow(self) -> None:
        try:
            self._collect()
            self.job = self._client.job(self.job_id)
        except ServerError as error:
            self.error = self.error or str(error)
        finally:
            self._has_ended = True

    def _collect(self) -> None:
        """Collect the frames. A failure before the first one is an error of the job, too."""
        try:
            # Closing the events closes their connection, also in the middle.
            with closing(self._client.events(self.job_id)) as events:
                self._take(events)
        except ServerError as error:
            self.error = str(error)

    def _take(self, events: Iterable[Frame]) -> None:
        for frame in events:
            if time.monotonic() - self._watched_at > _LEFT_S:
                self.error = "Nobody looked at this any more, so it was given up."
                return
            if frame.body is None:
                continue
            message = message_of(frame.body)
            if message:
                self.error = message
            else:
                self.frames.append(frame.body)


class RunGroup:
    """Several runs that are looked at, and cancelled, together."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)

    @property
    def is_done(self) -> bool:
        return all(run.is_done for run in self.runs)

    def watch(self) -> None:
        """Note that somebody looks at the runs, and which are done by now."""
        for run in self.runs:
            run.watch()

    def cancel(self) -> None:
        """Cancel the jobs that have not ended. Raise ServerError if the server does not take that."""
        for run in self.runs:
            if not run.is_done:
                run.cancel()
