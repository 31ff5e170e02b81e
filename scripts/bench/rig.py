"""The set-up of the rows: their loads, and both sides with the same network."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from scripts.bench import model
from scripts.bench.ours import Ours
from scripts.bench.serve import engine
from scripts.bench.theirs import Theirs
from shared.settings.types import Quantize


@dataclass(frozen=True)
class Load:
    """The sizes of all loads. Lengths are in tokens, and ranges are (least, most).

    `interval_s` is the time between staggered arrivals. `scored_at_once` is the number of contexts
    that are scored in one turn.
    """

    concurrent: int = 16
    prompt_tokens: tuple[int, int] = (80, 95)
    new_tokens: int = 64
    staggered_tokens: tuple[int, int] = (8, 128)
    interval_s: float = 0.1
    contexts: int = 32
    scored_at_once: int = 4
    context_tokens: int = 512
    continuations: int = 4
    continuation_tokens: int = 8
    shared_prefix: int = 1024
    prompt_lengths: tuple[int, ...] = (32, 128, 512, 1024)
    batches: tuple[int, ...] = (1, 4, 16, 32)
    queues: tuple[int, ...] = (0, 100, 1000)
    steps: int = 16


QUICK = Load(
    concurrent=4,
    prompt_tokens=(20, 30),
    new_tokens=8,
    staggered_tokens=(2, 8),
    interval_s=0.01,
    contexts=2,
    scored_at_once=1,
    context_tokens=64,
    shared_prefix=64,
    prompt_lengths=(16, 64),
    batches=(1, 4),
    queues=(0, 20),
    steps=4,
)


@dataclass(frozen=True)
class Rig:
    """Both sides of a row, each of which is loaded at its first use.

    `size` is the name of the network's size. `threads` and `quantize` are those of our side. The
    stack `engines` ends the processes of our engines.
    """

    size: str
    cache: Path
    threads: int
    baseline_threads: int
    quantize: Quantize
    rounds: int
    load: Load
    engines: ExitStack

    @property
    def vocab(self) -> int:
        return model.SIZES[self.size].vocab

    @cached_property
    def ours(self) -> Ours:
        return self._ours(model.hrm_text(self.cache, self.size), max_batch=self.load.concurrent)

    @cached_property
    def theirs(self) -> Theirs:
        return Theirs(model.hrm_text(self.cache, self.size), threads=self.baseline_threads)

    def wide(self) -> Ours:
        """Return our side with a batch size for the largest batch of the load."""
        return self._ours(model.hrm_text(self.cache, self.size), max_batch=max(self.load.batches))

    def causal(self) -> tuple[Ours, Theirs]:
        """Return both sides with the causal network, ours with its prefix cache."""
        path = model.causal(self.cache, self.size)
        ours = self._ours(path, max_batch=self.load.concurrent, prefix_cache=True)
        return ours, Theirs(path, threads=self.baseline_threads)

    def _ours(self, path: Path, max_batch: int, *, prefix_cache: bool = False) -> Ours:
        running = engine(
            path,
            threads=self.threads,
            max_batch=max_batch,
            quantize=self.quantize,
            prefix_cache=prefix_cache,
        )
        return self.engines.enter_context(running)
