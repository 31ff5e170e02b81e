"""A job on its way to an engine of any mechanism.

A `Take` is the job as it was taken from the queue, a `Prepared` the job as the engine has read it.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from shared.messages import PRIORITIES, Done, Priority, Task


@dataclass(frozen=True)
class Take:
    """A job that was taken. `key` names this take: two takes of one job have different keys.

    `deadline_s` is a moment of the engine's clock. `replayed_ids` holds for each choice the tokens
    that are in the log already, and `replayed_texts` their text. Takes of different `tenant`s share
    no computed prompt.
    """

    key: str
    task: Task
    tenant: str = ""
    deadline_s: float = math.inf
    priority: Priority = "default"
    replayed_ids: tuple[tuple[int, ...], ...] = ()
    replayed_texts: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """Return 0 for the best class."""
        return PRIORITIES.index(self.priority)


class Prepared(Protocol):
    """A take that an engine has read. It can be submitted, unless it has its `answer` already.

    `max_tokens` is the room for an answer where that is less than the task allows, else None.
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
