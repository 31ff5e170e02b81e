"""A job on its way to an engine, whatever the mechanism: what was taken, and what the engine made
of it."""

import math
from dataclasses import dataclass
from typing import Protocol

from shared.messages import PRIORITIES, Done, Priority, Task


@dataclass(frozen=True)
class Take:
    """A job that was taken. `key` names this take of it: two takes of one job are two works.

    `deadline_s` is a moment of the engine's clock. `replayed_ids` are, for each choice, the tokens
    that the log already holds. Works of different tenants share nothing that was computed.
    """

    key: str
    task: Task
    tenant: str = ""
    deadline_s: float = math.inf
    priority: Priority = "default"
    replayed_ids: tuple[tuple[int, ...], ...] = ()

    @property
    def rank(self) -> int:
        """Return 0 for the best class."""
        return PRIORITIES.index(self.priority)


class Prepared(Protocol):
    """A take that an engine has read: it can be submitted, or is answered already.

    `max_tokens` is the room for an answer where that is less than the task allows.
    """

    @property
    def key(self) -> str: ...

    @property
    def num_prompt_tokens(self) -> int: ...

    @property
    def num_truncated(self) -> int: ...

    @property
    def max_tokens(self) -> int | None: ...

    @property
    def answer(self) -> Done | None: ...
