"""The values of a q head; left out of the answers of models without one."""

from typing import Any

from pydantic import BaseModel

from shared.messages import HaltState


class QValues(BaseModel):
    q_halt: float
    q_continue: float


def q_values_body(values: tuple[float, float] | None) -> QValues | None:
    return None if values is None else QValues(q_halt=values[0], q_continue=values[1])


def q_values_of(halt: HaltState | None) -> QValues | None:
    return None if halt is None else q_values_body((halt.q_halt, halt.q_continue))


def segments_of(halt: HaltState | None) -> int | None:
    """Return the ACT segments that a network ran before it stopped, None if it has none."""
    return None if halt is None else halt.segments or None


def is_absent(value: Any) -> bool:
    return value is None
