"""The room that a fleet has for lines of batches, beside whatever else is asked of it.

Lines begin only where slots are idle, and some slots stay free: a request that comes then is taken
at once, in any class. A batch without a line under way may begin one in any case. That one waits in
the queue, so no batch is starved.
"""

import asyncio
from dataclasses import dataclass

import msgspec

from api.batches.lines import BatchLine
from api.deps import Front
from shared.errors import FleetError
from shared.queue.batches import Batches

_MAX_AGE_S = 0.1
_LEAST_FREE = 1
_FREE_SHARE = 4
"""One of so many slots stays free."""


class _WithModel(msgspec.Struct):
    model: str | None = None


_with_model = msgspec.json.Decoder(_WithModel)


@dataclass
class _Look:
    """A model as it was `at_s`: its slots, its jobs, and the batches that share the fleet.

    `num_begun` lines have been begun since, less those that have ended.
    """

    at_s: float
    num_slots: int
    num_jobs: int
    num_batches: int
    num_begun: int = 0

    @property
    def num_for_lines(self) -> int:
        """The slots that all batches together may fill while nothing else is there."""
        num_free = max(_LEAST_FREE, self.num_slots // _FREE_SHARE)
        # Who has one slot has none to leave free.
        return max(1, self.num_slots - num_free)


class Room:
    """The room for the lines of one batch."""

    def __init__(self, front: Front, batches: Batches) -> None:
        self._front = front
        self._batches = batches
        self._looks: dict[str, _Look] = {}

    async def has_room(self, line: BatchLine, num_open: int) -> bool:
        """Return whether a line may begin beside `num_open` others of its batch. Then it counts.

        Raise BrokerUnavailable and redis-py's errors.
        """
        look = await self._look(_model_of(line))
        is_idle = look.num_jobs + look.num_begun < look.num_for_lines
        # Of the slots each batch has its share.
        share = -(-look.num_for_lines // max(1, look.num_batches))
        if num_open > 0 and not (is_idle and num_open < share):
            return False
        look.num_begun += 1
        return True

    def note_end(self, line: BatchLine) -> None:
        """Count a line that has ended no more, before the next look tells so."""
        look = self._looks.get(_model_of(line))
        if look is not None:
            look.num_begun -= 1

    async def _look(self, name: str) -> _Look:
        now_s = asyncio.get_running_loop().time()
        look = self._looks.get(name)
        if look is None or now_s > look.at_s + _MAX_AGE_S:
            look = await self._fresh(name, now_s)
            self._looks[name] = look
        return look

    async def _fresh(self, name: str, now_s: float) -> _Look:
        try:
            model = await self._front.admission.find(name or None)
        except FleetError:
            # There is no such model, or no worker: the line itself is told so.
            return _Look(now_s, num_slots=2, num_jobs=0, num_batches=1)
        fleet = await self._front.fleet.now()
        num_workers = max(1, len(fleet.serving(model.id)))
        depth = await self._front.submissions.depth(model.id)
        return _Look(
            now_s,
            num_slots=num_workers * model.max_batch,
            num_jobs=depth.queued + depth.running,
            num_batches=await self._batches.count_open(),
        )


def _model_of(line: BatchLine) -> str:
    """Return the name of the model that a line asks for, "" for none."""
    try:
        return _with_model.decode(line.body).model or ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
