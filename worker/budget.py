"""Which models a worker holds in memory: how many, how many bytes, and which one goes to make room.

Plain Python over numbers; whoever asks does the loading and the freeing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

TURN_S = 2.0
"""A model that others wait for keeps its place for so long at least, if it has work itself."""


@dataclass(frozen=True)
class Resident:
    """A model in memory. It is busy while jobs are in hand, and wanted while more of them wait.

    Times are seconds of one clock: when it was loaded, and when its last job ended.
    """

    id: str
    num_bytes: int
    loaded_s: float
    used_s: float
    is_pinned: bool = False
    is_busy: bool = False
    is_wanted: bool = False
    is_leaving: bool = False


@dataclass(frozen=True)
class Memory:
    """What there is, in bytes. `total_bytes` 0: the system does not tell, and only the number of
    models counts.

    So it does for a model whose size is not known, which is 0.
    """

    total_bytes: int
    used_bytes: int


@dataclass(frozen=True)
class Load:
    """There is room."""


@dataclass(frozen=True)
class Evict:
    """These are to go first. Those with jobs in hand take nothing more, and end these."""

    ids: tuple[str, ...]


@dataclass(frozen=True)
class Wait:
    """Somebody is on the way out, or has to have a turn first."""


@dataclass(frozen=True)
class Refuse:
    """There will never be room; `reason` says what would help."""

    reason: str


Verdict = Load | Evict | Wait | Refuse


@dataclass(frozen=True)
class Budget:
    """`max_models` None: as many as fit. More than `watermark` of the memory should never be in
    use."""

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
        """Decide what to do about a model of `num_bytes` that has work and is not in memory."""
        allowed_bytes = int(self.watermark * memory.total_bytes)
        too_many = 0
        if self.max_models is not None:
            too_many = len(residents) + 1 - self.max_models
        lacking_bytes = 0
        if memory.total_bytes and num_bytes:
            lacking_bytes = memory.used_bytes + num_bytes - allowed_bytes
        if too_many <= 0 and lacking_bytes <= 0:
            return Load()

        movable = [item for item in residents if not item.is_pinned]
        if not _frees(movable, too_many, lacking_bytes):
            return Refuse(self._reason(model_id, num_bytes, residents, memory, too_many))
        leaving = [item for item in movable if item.is_leaving]
        if _frees(leaving, too_many, lacking_bytes):
            return Wait()
        free = [item for item in movable if _may_go(item, now_s)]
        free.sort(key=_order_of_leaving)
        chosen = list(leaving)
        for item in free:
            if _frees(chosen, too_many, lacking_bytes):
                break
            chosen.append(item)
        if not _frees(chosen, too_many, lacking_bytes):
            return Wait()
        return Evict(tuple(item.id for item in chosen if not item.is_leaving))

    def _reason(
        self,
        model_id: str,
        num_bytes: int,
        residents: Sequence[Resident],
        memory: Memory,
        too_many: int,
    ) -> str:
        pinned = sum(item.is_pinned for item in residents)
        if too_many > 0 and pinned >= (self.max_models or 0):
            return (
                f"all {self.max_models} places are taken by pinned models: raise "
                "--max-loaded-models, or unpin one (`aios models unpin ID`)"
            )
        return (
            f"{model_id!r} needs {_gigabytes(num_bytes)}, and even without the models that may go "
            f"{_gigabytes(memory.used_bytes - _sum_of(residents))} of "
            f"{_gigabytes(memory.total_bytes)} are in use, of which {self.watermark:.0%} may be: "
            "serve it in bfloat16 or int8, unpin a model, raise --memory-watermark, or give the "
            "worker more memory"
        )


def _may_go(item: Resident, now_s: float) -> bool:
    """Return whether a model may be told to go: it has nothing to do, or has had its turn."""
    if item.is_leaving:
        return False
    return not (item.is_busy or item.is_wanted) or now_s - item.loaded_s >= TURN_S


def _order_of_leaving(item: Resident) -> tuple[bool, bool, float]:
    """Sort those without work first, and of these the one that was used longest ago."""
    return item.is_wanted, item.is_busy, item.used_s


def _frees(items: Sequence[Resident], count: int, num_bytes: int) -> bool:
    return len(items) >= count and _sum_of(items) >= num_bytes


def _sum_of(items: Sequence[Resident]) -> int:
    return sum(item.num_bytes for item in items if not item.is_pinned)


def _gigabytes(num_bytes: int) -> str:
    return f"{max(0, num_bytes) / 2**30:.1f} GB"
