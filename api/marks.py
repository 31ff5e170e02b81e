"""When the jobs of a request got on, as the front that follows them saw it: its own clock, and no question to Redis."""

import time
from dataclasses import dataclass, field

from api.timings import Timings, timings_of
from shared.messages import Event, Started, Terminal, Tokens
from shared.requests import Times


@dataclass
class Marks:
    """Seconds of this process's clock. Of an answer that is not streamed the first token is seen with what was gathered
    behind it, up to half a second late. `worker` is the one that began a job last, `attempts` how often one was begun.
    """

    came_s: float = field(default_factory=time.perf_counter)
    taken_s: float | None = None
    first_s: float | None = None
    ended_s: float | None = None
    worker: str | None = None
    attempts: int = 0

    def note(self, event: Event) -> None:
        """An event of any of the jobs has come."""
        now_s = time.perf_counter()
        if isinstance(event, Started):
            self.taken_s = self.taken_s or now_s
            self.worker, self.attempts = event.worker, max(self.attempts, event.epoch)
        elif isinstance(event, Tokens):
            self.first_s = self.first_s or now_s
        elif isinstance(event, Terminal):
            self.ended_s = now_s

    def timings(self, num_completion_tokens: int) -> Timings:
        times = Times(self.came_s, self.taken_s, self.first_s, self.ended_s)
        return timings_of([times], num_completion_tokens)
