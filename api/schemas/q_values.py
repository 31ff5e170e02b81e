"""The values of an implant's q head; left out of the answers of models without one."""

from typing import Any

from pydantic import BaseModel


class QValues(BaseModel):
    q_halt: float
    q_continue: float


def q_values_body(values: tuple[float, float] | None) -> QValues | None:
    return None if values is None else QValues(q_halt=values[0], q_continue=values[1])


def is_absent(value: Any) -> bool:
    return value is None
