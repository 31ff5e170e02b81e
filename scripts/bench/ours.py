"""Our side of a row: an engine, which is stepped as its thread steps it in a worker.

`serve.engine` runs one in a separate process.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter as now

import torch

from scripts.bench.options import own_options
from shared.messages import Done, Generate, Sampling, Score, Scored
from shared.settings.types import Quantize
from shared.tasks.runner_options import KVDtype
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import Runner, RunnerOptions
from worker.hardware.device import keep_freed_memory
from worker.host.loading import warm_up
from worker.runners.registry import load_sequence_runner

KV_MIB = 1024


@dataclass
class Response:
    """The engine's response to one request.

    Times are those of `time.perf_counter`, and infinite until they are known.
    """

    ids: list[int] = field(default_factory=list)
    first_at: float = math.inf
    ended_at: float = math.inf


class Ours:
    """An engine with a loaded model.

    All turns of a row have the same prompts. So `prefix_cache` is off except in the rows that
    measure it: one turn must not use the results of another. Nothing is drafted, because weights
    are random: `scripts.bench.drafts` measures drafts of a trained model.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        max_batch: int = 16,
        quantize: Quantize = "none",
        dtype: str = "float32",
        kv_dtype: KVDtype = "auto",
        kv_mib: int = KV_MIB,
        prefix_cache: bool = False,
    ) -> None:
        options = RunnerOptions(
            path=str(path),
            max_batch=max_batch,
            kv_bytes=kv_mib * 2**20,
            quantize=quantize,
            dtype=dtype,
            prefix_cache=prefix_cache,
            own=own_options(path, kv_dtype),
        )
        keep_freed_memory()
        torch.set_num_threads(threads)
        self._threads = threads
        self._responses: dict[str, Response] = {}
        self._ended: dict[str, Done] = {}
        self.runner: Runner = load_sequence_runner("auto", options)
        self.runner.spec = replace(self.runner.spec, max_drafts=0)
        warm_up(self.runner)
        self._engine = Engine(self.runner, self._receive)

    def generate(self, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[Response]:
        """Return greedy answers of the given lengths to prompts that arrive together."""
        return self.arrivals(prompts, lengths, [0.0] * len(prompts))

    def arrivals(
        self, prompts: Sequence[Sequence[int]], lengths: Sequence[int], at_s: Sequence[float]
    ) -> list[Response]:
        """Return greedy answers of the given lengths to prompts that arrive one after the other.

        `at_s` are the times of arrival in ascending order, in seconds from now.
        """
        self._begin()
        started = now()
        for number, at in enumerate(at_s):
            self._step_until(started + at)
            self._submit(str(number), prompts[number], lengths[number])
        self._finish()

        responses = []
        short = []
        for number, length in enumerate(lengths):
            response = self._responses[str(number)]
            responses.append(response)
            if len(response.ids) != length:
                short.append(number)
        assert not short, f"answers {short} do not have the requested length"
        return responses

    def score(
        self, contexts: Sequence[Sequence[int]], tails: Sequence[Sequence[Sequence[int]]]
    ) -> list[float]:
        """Return the log-likelihoods of all continuations, context by context.

        `tails` are the continuations of each context.
        """
        self._begin()
        for number, (context, continuations) in enumerate(zip(contexts, tails, strict=True)):
            texts = tuple(tuple(continuation) for continuation in continuations)
            task = Score(tuple(context), texts)
            self._engine.submit(SequenceWork(str(number), self.runner.encode(task), None))
        self._finish()

        log_likelihoods = []
        for number in range(len(contexts)):
            result = self._ended[str(number)].result
            assert isinstance(result, Scored)
            for score in result.scores:
                log_likelihoods.append(score.log_likelihood)
        return log_likelihoods

    def decode_steps(
        self, running: Sequence[Sequence[int]], waiting: Sequence[Sequence[int]], count: int
    ) -> float:
        """Return the seconds that `count` decode steps of a full batch take while others wait.

        Afterwards all requests are aborted.
        """
        self._begin()
        # Long enough to last through all prefills and the measured steps.
        length = 2 * count + len(running)
        for number, prompt in enumerate(running):
            self._submit(str(number), prompt, length)
        while len(self._responses) < len(running):
            self._engine.step()
        for number, prompt in enumerate(waiting, start=len(running)):
            self._submit(str(number), prompt, length=1)
        self._engine.step()

        started = now()
        for _ in range(count):
            self._engine.step()
        seconds = now() - started
        assert len(self._responses) == len(running) and not self._ended, (
            "the batch changed while it was measured"
        )

        for number in range(len(running) + len(waiting)):
            self._engine.abort(str(number))
        self._finish()
        return seconds

    def _submit(self, key: str, prompt: Sequence[int], length: int) -> None:
        task = Generate(tuple(prompt), Sampling(length, seed=0, temperature=0.0))
        self._engine.submit(SequenceWork(key, self.runner.encode(task), task.sampling))

    def _begin(self) -> None:
        # Set in each turn, as torch keeps the number for each calling thread.
        torch.set_num_threads(self._threads)
        self._responses = {}
        self._ended = {}

    def _step_until(self, moment: float) -> None:
        """Step while there is work, else sleep, until a time of `time.perf_counter`."""
        while (remaining_s := moment - now()) > 0:
            if self._engine.has_work:
                self._engine.step()
            else:
                time.sleep(remaining_s)

    def _finish(self) -> None:
        while self._engine.has_work:
            self._engine.step()

    def _receive(self, emissions: list[Emission]) -> None:
        """Add the emissions of a step to the responses, with its time."""
        received_at = now()
        for emission in emissions:
            response = self._responses.setdefault(emission.key, Response())
            response.ids += emission.ids
            if emission.ids:
                response.first_at = min(response.first_at, received_at)
            if emission.ended is not None:
                assert isinstance(emission.ended, Done), emission.ended
                response.ended_at = received_at
                self._ended[emission.key] = emission.ended
