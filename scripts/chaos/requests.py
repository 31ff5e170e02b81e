"""Requests of clients and the answers to them, as plain values that know no HTTP."""

import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

Mode = Literal["sync", "sse", "scoring", "poll"]


@dataclass(frozen=True)
class ClientRequest:
    """One request and its expected answer.

    `expected` is the text, with each of several choices on its own line, or the sums of the scores
    as JSON. It is None as long as it is not known. With `steps` the request is for an echo task,
    whose result is a file with the text in place of tokens.
    """

    name: str
    mode: Mode
    prompt: str
    max_tokens: int = 32
    temperature: float = 0.0
    n: int = 1
    continuations: tuple[str, ...] = ()
    expected: str | None = None
    steps: int = 0
    step_ms: int = 0

    @property
    def path(self) -> str:
        if self.steps:
            return "/v1/echo-task"
        if self.mode == "scoring":
            return "/loglikelihood"
        return "/v1/completions"

    @property
    def body(self) -> dict[str, Any]:
        if self.steps:
            return {
                "model": "tasks",
                "text": self.prompt,
                "steps": self.steps,
                "step_ms": self.step_ms,
                "stream": self.mode == "sse",
            }
        if self.mode == "scoring":
            return {
                "prompts": [self.prompt] * len(self.continuations),
                "continuations": list(self.continuations),
            }

        body: dict[str, Any] = {
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": 7,
            "n": self.n,
        }
        if self.mode == "sse":
            body["stream"] = True
        return body


@dataclass
class Answer:
    """The answer to a request as far as it has come.

    `texts` are those of the choices by index. `frames` are the times of the request and of each
    frame, in seconds of the monotonic clock. `tries` counts the requests to fronts. For an echo
    task `steps_done` lists the steps that the frames of progress report, and `file_id` is its file.
    """

    request: ClientRequest
    texts: dict[int, str] = field(default_factory=dict)
    error: str = ""
    frames: list[float] = field(default_factory=lambda: [time.monotonic()])
    last_id: str = ""
    tries: int = 0
    steps_done: list[int] = field(default_factory=list)
    file_id: str = ""

    @property
    def text(self) -> str:
        """The text of all choices, each on its own line."""
        return "\n".join(self.texts[choice] for choice in sorted(self.texts))

    @property
    def is_right(self) -> bool:
        """Return whether the answer is the expected one and its progress always rose."""
        if self.error or self.text != self.request.expected:
            return False
        return self.steps_done == sorted(set(self.steps_done))

    @property
    def took_s(self) -> float:
        """The seconds from the request to the last frame."""
        return self.frames[-1] - self.frames[0]

    @property
    def gap_s(self) -> float:
        """The longest time between two frames, in seconds."""
        gaps = [later - earlier for earlier, later in pairwise(self.frames)]
        return max(gaps, default=0.0)
