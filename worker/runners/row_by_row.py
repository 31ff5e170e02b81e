"""Networks that compute the rows of a batch one after the other.

A product of several rows may be summed in another order than that of one: with torch 2.13 on a CPU
a U-Net's rows differ by 1e-6 from what they are alone, and the steps of a scheduler let such a
difference grow. Rows that are computed alone are the same in any batch, and next to nothing is
lost: such networks are busy with the pixels of one row.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Compute = Callable[..., Any]


class RowByRow:
    """Computes the rows of pictures that are still wanted, each by itself.

    `wanted` has a flag for each picture of the batch. The rows of a call are those of all pictures,
    once or several times: guidance needs each of them with and without its prompt.
    """

    def __init__(self) -> None:
        self.wanted: Sequence[bool] = ()

    def wrap(self, compute: Compute) -> Compute:
        """Return a function that calls `compute` for each row, and joins what it returns."""

        def compute_rows(*args: Any, **kwargs: Any) -> Any:
            num_rows = _num_rows(args, kwargs)
            if num_rows == 1:
                return compute(*args, **kwargs)
            outputs: dict[int, Any] = {}
            for row in range(num_rows):
                if self.wanted[row % len(self.wanted)]:
                    row_args = _row_of(args, row, num_rows)
                    row_kwargs = _row_of(kwargs, row, num_rows)
                    outputs[row] = compute(*row_args, **row_kwargs)
            # What nobody waits for is not computed: any numbers do.
            some = next(iter(outputs.values()))
            return _joined([outputs.get(row, some) for row in range(num_rows)])

        return compute_rows


def _num_rows(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Return the number of rows of a call: those of its first tensor that has any."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim > 0:
            return len(value)
    raise AssertionError("a network is called with a tensor")


def _row_of(value: Any, row: int, num_rows: int) -> Any:
    """Return the arguments of one row. What has no rows is for all of them."""
    if isinstance(value, Tensor):
        if value.ndim > 0 and len(value) == num_rows:
            # A copy, because sums may also depend on where in memory a row begins.
            return value[row : row + 1].clone()
        return value
    if isinstance(value, dict):
        return {name: _row_of(part, row, num_rows) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_row_of(part, row, num_rows) for part in value)
    return value


def _joined(outputs: Sequence[Any]) -> Any:
    """Return the outputs of single rows as those of a batch, in the same form."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(list(outputs))
    if isinstance(first, dict):
        # An output of transformers or diffusers is a dictionary that has its names as fields.
        parts = {name: _joined([output[name] for output in outputs]) for name in first}
        return type(first)(**parts)
    if isinstance(first, tuple):
        return tuple(map(_joined, zip(*outputs, strict=True)))
    assert first is None
    return None
