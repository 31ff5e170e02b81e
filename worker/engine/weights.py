"""The size of a model's weights in memory."""

from dataclasses import dataclass

_FP16_BYTES = 2


@dataclass(frozen=True)
class WeightSize:
    """The `num_weights` numbers of a model, and the `num_bytes` that they take in memory.

    Both are 0 where they are not known.
    """

    num_weights: int = 0
    num_bytes: int = 0

    @property
    def saving(self) -> float:
        """Return the share of the bytes in fp16 that is saved. It is negative for more bytes."""
        if not self.num_weights:
            return 0.0
        return 1 - self.num_bytes / (_FP16_BYTES * self.num_weights)


UNKNOWN_SIZE = WeightSize()
