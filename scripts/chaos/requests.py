"""What a client asks, and what it was told: plain values, which know no HTTP."""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

Mode = Literal["sync", "sse", "scoring", "poll"]


@dataclass(frozen=True)
class ClientRequest:
    """One request. `expected` is its whole text (of several choices each on its own line), or the
    sums of its scores; None where it is still to be found out. With `steps` it is a task that is
    done whole, whose file has the text.
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
        return "/loglikelihood" if self.mode == "scoring" else "/v1/completions"

    @property
    def body(self) -> dict[str, Any]:
        if self.steps:
            task = {
                "model": "tasks",
                "text": self.prompt,
                "steps": self.steps,
                "step_ms": self.step_ms,
            }
            return {**task, "stream": self.mode == "sse"}
        if self.mode == "scoring":
            return {
                "prompts": [self.prompt] * len(self.continuations),
                "continuations": list(self.continuations),
            }
        sampling = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": 7,
            "n": self.n,
        }
        return {
            "prompt": self.prompt,
            **sampling,
            **({"stream": True} if self.mode == "sse" else {}),
        }


@dataclass
class Answer:
    """What came. `said` holds the text of each choice, `frames` the times at which the request left
    and each frame came (seconds, monotonic); `tries` counts how often a front was asked. Of a task
    that is done whole `steps_done` are those that it was told of, and `file_id` is that of its
    file."""

    request: ClientRequest
    said: dict[int, str] = field(default_factory=dict)
    error: str = ""
    frames: list[float] = field(default_factory=lambda: [time.monotonic()])
    last_id: str = ""
    tries: int = 0
    steps_done: list[int] = field(default_factory=list)
    file_id: str = ""

    @property
    def text(self) -> str:
        return "\n".join(self.said[choice] for choice in sorted(self.said))

    @property
    def is_right(self) -> bool:
        tells_more_each_time = self.steps_done == sorted(set(self.steps_done))
        return not self.error and self.text == self.request.expected and tells_more_each_time

    @property
    def took_s(self) -> float:
        return self.frames[-1] - self.frames[0]

    @property
    def gap_s(self) -> float:
        """The longest wait for a frame."""
        return max(
            (later - sooner for sooner, later in zip(self.frames, self.frames[1:], strict=False)),
            default=0.0,
        )
