"""A worker in the test's own loop that behaves like the echo runner, with a gate to hold it in the
middle of a job.

Text comes back word by word, the n-th choice without its first n words; a score is -1.0 for each
character of the continuation; a puzzle is its own solution.
"""

import asyncio
import re
from types import TracebackType
from typing import Self

from redis.asyncio import Redis

from shared.broker import Broker, connect
from shared.echo_task import EchoedTask, EchoTask
from shared.log import Append, LogWriter
from shared.messages import (
    ArtifactRef,
    Chat,
    Classify,
    ContinuationScore,
    Detokenize,
    Detokenized,
    Done,
    Embed,
    Embedded,
    Event,
    Failed,
    Generate,
    Generated,
    Job,
    Label,
    Labelled,
    ModelInfo,
    Progress,
    Prompt,
    Sampling,
    Score,
    Scored,
    Solution,
    Solve,
    Started,
    Tokenize,
    Tokenized,
    TokenLogprob,
    Tokens,
    WorkerInfo,
)
from shared.presence import Presence
from shared.queue import Claim, QueuePolicy, WorkQueue
from shared.vectors import pack
from tests.polling import ALL_DAY_S
from tests.redis_server import patient

ALL_TASKS = (
    "generate",
    "score",
    "solve",
    "embed",
    "classify",
    "tokenize",
    "detokenize",
    "echo_task",
)


def model_info(id: str = "echo", max_new_tokens: int = 1024, **more: object) -> ModelInfo:
    return ModelInfo(id, "echo", f"{id} for tests", 2048, max_new_tokens, 8, **more)  # type: ignore[arg-type]


async def announce(redis: Redis, *models: str, state: str = "ready", **more: object) -> None:
    """A worker that is there and takes nothing."""
    infos = tuple(model_info(name, **more) for name in models)
    await Presence(redis, ttl_s=ALL_DAY_S).announce(WorkerInfo("idle", state, infos))  # type: ignore[arg-type]


class EchoWorker:
    """`gate` is open unless a test closes it: then a job is started, says its first word and
    waits."""

    def __init__(
        self, redis_url: str, model: ModelInfo | None = None, broker: type[Broker] = Broker
    ) -> None:
        self.model = model or model_info()
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Failed | None = None
        self.num_truncated = 0
        self.num_cached = 0
        self.max_tokens: int | None = None
        self.jobs: list[Job] = []
        self.stale: list[str] = []
        self._redis = patient(connect(redis_url))
        self._broker = broker(self._redis)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await Presence(self._redis, ttl_s=ALL_DAY_S).announce(
            WorkerInfo("w1", "ready", (self.model,))
        )
        self._loop = asyncio.create_task(self._take())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in (self._loop, *self._tasks):
            task.cancel()
        await asyncio.gather(self._loop, *self._tasks, return_exceptions=True)
        await self._redis.aclose()

    async def _take(self) -> None:
        # Its leases never lapse: it renews none, and it says a job from the start each time.
        terms = QueuePolicy(lease_s=ALL_DAY_S)
        queue = WorkQueue(
            self._broker,
            terms,
            model=self.model.id,
            worker="w1",
            fingerprint=self.model.fingerprint,
        )
        while True:
            taken = await queue.take("00", 64, is_empty=not self._tasks)
            if not taken.claims:
                await queue.await_bell(["00"], 1)
            for claim in taken.claims:
                self.jobs.append(claim.job)
                task = asyncio.create_task(self._work(claim))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _work(self, claim: Claim) -> None:
        writer, after = LogWriter(self._broker), claim.last_index
        for number, event in enumerate(self._events(claim)):
            if number >= 2:
                await self.gate.wait()
            [is_mine] = await writer.append([Append(claim.job, claim.epoch, after, (event,))])
            if not is_mine:
                self.stale.append(claim.job.id)
                return
            after += 1

    def _events(self, claim: Claim) -> list[Event]:
        if self.failure is not None:
            return [self.failure]
        task = claim.job.task
        if isinstance(task, Generate):
            return self._echo(claim.epoch, task)
        if isinstance(task, Solve):
            return self._solve(claim.epoch, task)
        if isinstance(task, Embed | Classify):
            return self._read(claim.epoch, task)
        if isinstance(task, EchoTask):
            return self._take_steps(claim.epoch, task)
        if isinstance(task, Tokenize | Detokenize):
            return self._spell(claim.epoch, task)
        return self._score(claim.epoch, task)

    def _echo(self, epoch: int, task: Generate) -> list[Event]:
        words, sampling = _words(task.prompt), task.sampling
        said = [words[choice:][: sampling.max_tokens] for choice in range(sampling.n)]
        reasons = tuple(
            "stop" if len(said[i]) == len(words[i:]) else "length" for i in range(sampling.n)
        )
        steps = [(number, choice) for number in range(len(words)) for choice in range(sampling.n)]
        return [
            Started(epoch, "w1", len(words), self.num_truncated, self.max_tokens),
            *(
                _tokens(said[i], number, i, reasons[i], sampling)
                for number, i in steps
                if number < len(said[i])
            ),
            Done(
                reasons[0],
                len(words),
                sum(map(len, said)),
                num_cached_tokens=self.num_cached,
                result=Generated(reasons) if sampling.n > 1 else None,
            ),
        ]

    def _score(self, epoch: int, task: Score) -> list[Event]:
        scores = tuple(
            ContinuationScore(-1.0 * len(text), len(text), False) for text in task.continuations
        )
        num_prompt_tokens = len(_words(task.context))
        started = Started(epoch, "w1", num_prompt_tokens, self.num_truncated)
        return [started, Done("score", num_prompt_tokens, 0, result=Scored(scores))]

    def _solve(self, epoch: int, task: Solve) -> list[Event]:
        """A string as one row of numbers, as no worker answers in strings."""
        puzzle = task.puzzle
        grid = (tuple(map(int, puzzle.replace(".", "0"))),) if isinstance(puzzle, str) else puzzle
        solution = Solution(grid, 0.25, task.max_steps or 16, True)
        return [Started(epoch, "w1", 81), Done("solve", 81, 0, result=solution)]

    def _read(self, epoch: int, task: Embed | Classify) -> list[Event]:
        """A vector of the text's length and whether it is normal, labels `long` and `short`."""
        count = len(_words(task.text))
        started = Started(epoch, "w1", count, self.num_truncated)
        if isinstance(task, Embed):
            return [
                started,
                Done("embed", count, 0, result=Embedded(pack([count, task.normalize]))),
            ]
        labels = (Label("short", 0.75), Label("long", 0.25))
        return [started, Done("classify", count, 0, result=Labelled(labels[: task.top_k]))]

    def _take_steps(self, epoch: int, task: EchoTask) -> list[Event]:
        """Two events come before the gate: the start and the first step."""
        steps = [Progress(done, task.steps) for done in range(1, task.steps + 1)]
        made = ArtifactRef(
            f"file-{len(task.text * task.steps)}", "text/plain", len(task.text * task.steps), "0a"
        )
        end = Done("echo_task", 0, 0, result=EchoedTask(task.steps), artifacts=(made,))
        return [Started(epoch, "w1", 0), *steps, end]

    def _spell(self, epoch: int, task: Tokenize | Detokenize) -> list[Event]:
        """A word's token is its place, and the other way round."""
        if isinstance(task, Detokenize):
            text = "".join(_words(task.ids))
            return [
                Started(epoch, "w1", len(task.ids)),
                Done("detokenize", len(task.ids), 0, result=Detokenized(text)),
            ]
        words = _words(task.prompt)
        found = Tokenized(tuple(range(len(words))), tuple(words) if task.with_texts else ())
        return [Started(epoch, "w1", len(words)), Done("tokenize", len(words), 0, result=found)]


def _tokens(words: list[str], number: int, choice: int, reason: str, sampling: Sampling) -> Tokens:
    """The event of one word, whose token is its place. Its log-probability is -0.5 for each before
    it."""
    logprobs: tuple[TokenLogprob, ...] = ()
    if sampling.logprobs is not None:
        top = (
            (number, words[number], 0.5 * -number),
            (99, "!", -9.0),
            (100, "!", -10.0),
            (101, "", -11.0),
        )
        logprobs = (TokenLogprob(0.5 * -number, words[number], top[: sampling.logprobs]),)
    is_last = number + 1 == len(words)
    return Tokens((number,), words[number], choice, logprobs, reason if is_last else None)


def _words(text: Prompt) -> list[str]:
    if isinstance(text, Chat):
        text = " ".join(turn.content for turn in text.messages)
    return (
        re.findall(r"\S+\s*", text) if isinstance(text, str) else [f"#{token} " for token in text]
    )
