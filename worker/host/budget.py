"""The budget of the models in a worker's memory.

It limits their number and their bytes, and chooses the models that are unloaded to make room. It is
plain Python over numbers. The caller loads and frees.
"""

from collections.abc import Sequence
from dataclasses import dataclass

TURN_S = 2.0
"""The least time for which a model that has work stays in memory while others wait for room."""


@dataclass(frozen=True)
class Resident:
    """A model in memory. It is busy while it has jobs in hand, and wanted while others wait for it.

    `loaded_s` is the time when it was loaded, and `used_s` the time when its last job ended. Both
    are seconds of one clock. `popularity` is that of `shared.fleet.popularity`. A model that
    `is_leaving` takes no more jobs.
    """

    id: str
    num_bytes: int
    loaded_s: float
    used_s: float
    is_pinned: bool = False
    is_busy: bool = False
    is_wanted: bool = False
    is_leaving: bool = False
    popularity: float = 0.0


@dataclass(frozen=True)
class Memory:
    """The total memory and the memory in use, in bytes.

    `total_bytes` is 0 where the system does not tell. Then only the number of models is limited.
    The same holds for a model whose size is 0, which means unknown.
    """

    total_bytes: int
    used_bytes: int


@dataclass(frozen=True)
class Load:
    """The verdict that there is room."""


@dataclass(frozen=True)
class Evict:
    """The verdict that these models have to be unloaded first.

    Those with jobs in hand take no more, and end these.
    """

    ids: tuple[str, ...]


@dataclass(frozen=True)
class Wait:
    """The verdict that room will come: a model is leaving, or its turn is not over."""


@dataclass(frozen=True)
class Refuse:
    """The verdict that there will never be room. `reason` says why, and what would help."""

    reason: str


Verdict = Load | Evict | Wait | Refuse


@dataclass(frozen=True)
class Budget:
    """The limits: at most `max_models` models (None: as many as fit) in `watermark` of the memory.

    `watermark` is a share, from 0 to 1.
    """

    max_models: int | None = None
    watermark: float = 0.85

    def room_for(
        self,
        model_id: str,
        num_bytes: int,
        residents: Sequence[Resident],
        memory: Memory,
        now_s: float,
    ) -> Verdict:
        """Return the verdict on a model of `num_bytes` that has work and is not in memory."""
        allowed_bytes = int(self.watermark * memory.total_bytes)
        too_many = 0
        if self.max_models is not None:
            too_many = len(residents) + 1 - self.max_models
        lacking_bytes = 0
        if memory.total_bytes and num_bytes:
            lacking_bytes = memory.used_bytes + num_bytes - allowed_bytes
        if too_many <= 0 and lacking_bytes <= 0:
            return Load()

        movable = [resident for resident in residents if not resident.is_pinned]
        if not _frees(movable, too_many, lacking_bytes):
            return Refuse(self._reason(model_id, num_bytes, residents, memory, too_many))
        leaving = [resident for resident in movable if resident.is_leaving]
        if _frees(leaving, too_many, lacking_bytes):
            return Wait()

        candidates = [resident for resident in movable if _may_go(resident, now_s)]
        candidates.sort(key=_order_of_leaving)
        # Only as many as are needed to make room, beside those that are leaving anyway.
        evicted: list[Resident] = []
        for candidate in candidates:
            if _frees(leaving + evicted, too_many, lacking_bytes):
                break
            evicted.append(candidate)
        if not _frees(leaving + evicted, too_many, lacking_bytes):
            return Wait()
        return Evict(tuple(resident.id for resident in evicted))

    def _reason(
        self,
        model_id: str,
        num_bytes: int,
        residents: Sequence[Resident],
        memory: Memory,
        too_many: int,
    ) -> str:
        """Return why there will never be room, and what would help."""
        num_pinned = sum(resident.is_pinned for resident in residents)
        if too_many > 0 and num_pinned >= (self.max_models or 0):
            return (
                f"all {self.max_models} places are taken by pinned models: raise "
                "--max-loaded-models, or unpin one (`aios models unpin ID`)"
            )
        return (
            f"{model_id!r} needs {_gigabytes(num_bytes)}, and even without the models that may go "
            f"{_gigabytes(memory.used_bytes - _movable_bytes(residents))} of "
            f"{_gigabytes(memory.total_bytes)} are in use, of which {self.watermark:.0%} may be: "
            "serve it in bfloat16 or int8, unpin a model, raise --memory-watermark, or give the "
            "worker more memory"
        )


def _may_go(resident: Resident, now_s: float) -> bool:
    """Return whether a model may be evicted: it has no work, or has had its turn."""
    if resident.is_leaving:
        return False
    if not resident.is_busy and not resident.is_wanted:
        return True
    return now_s - resident.loaded_s >= TURN_S


def _order_of_leaving(resident: Resident) -> tuple[bool, bool, float, float]:
    """Return the sort key of eviction: models without work first, the least asked for before others.

    Of equal ones, and of those with work, the one that was used longest ago comes first.
    """
    popularity = resident.popularity
    # Models that all have work take turns, whatever they are asked for else.
    if resident.is_wanted or resident.is_busy:
        popularity = 0.0
    return resident.is_wanted, resident.is_busy, popularity, resident.used_s


def _frees(residents: Sequence[Resident], count: int, num_bytes: int) -> bool:
    """Return whether `count` models and `num_bytes` would be free without these models."""
    return len(residents) >= count and _movable_bytes(residents) >= num_bytes


def _movable_bytes(residents: Sequence[Resident]) -> int:
    return sum(resident.num_bytes for resident in residents if not resident.is_pinned)


def _gigabytes(num_bytes: int) -> str:
    return f"{max(0, num_bytes) / 2**30:.1f} GB"
