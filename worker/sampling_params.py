"""The sampling parameters of a Python program.

The names are vLLM's, and the ranges are those of the HTTP bodies.
"""

import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.errors import InvalidRequest
from shared.messages import Depth, Effort, Generate, Prompt, Sampling
from shared.tasks.runner_options import CYCLES
from shared.tasks.specs import EFFORTS

_SEED_BITS = 63
_INTEGERS: dict[str, tuple[int, int | None]] = {
    "n": (1, None),
    "max_tokens": (1, None),
    "top_k": (-1, None),
    "min_tokens": (0, None),
    "logprobs": (0, None),
    "seed": (-(2**63), 2**64 - 1),
    "truncate_prompt_tokens": (-1, None),
    "max_steps": (1, 2**31 - 1),
}
_NUMBERS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_OPTIONAL = ("max_tokens", "logprobs", "seed", "truncate_prompt_tokens", "max_steps")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """The parameters of the answer to one prompt.

    The defaults are those of `/v1/completions` and of vLLM. `temperature` 0 is greedy. `top_k` 0 or
    -1, `top_p` 1.0 and `min_p` 0 exclude no token. Without a `seed` each prompt gets a fresh one.
    `stop` is one text or several; the answer ends before them. `max_tokens` None allows as many as
    fit the context window. `logprobs` is the number of likeliest tokens that are reported beside
    each chosen one; None reports nothing.

    `condition` is HRM-Text's; None is the model's default. One of `cycles` (HRM-Text, as 2x1),
    `max_steps` (ACT segments) and `effort` runs a recurrent model at another depth. At most the last
    `truncate_prompt_tokens` tokens of a prompt are read. The value -1 keeps as many as leave room
    for the answer, and None refuses a prompt that does not fit.

    Raises InvalidRequest, whose `field` is the parameter at fault.
    """

    n: int = 1
    max_tokens: int | None = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    condition: str | None = None
    cycles: str | None = None
    max_steps: int | None = None
    effort: Effort | None = None

    def __post_init__(self) -> None:
        for name, (least, most) in _INTEGERS.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                _check_integer(name, value, least, most)
        for name, (lowest, highest) in _NUMBERS.items():
            _check_number(name, getattr(self, name), lowest, highest)
        for token in self.stop_token_ids or ():
            _check_integer("stop_token_ids", token, 0, None)
        for token, bias in (self.logit_bias or {}).items():
            _check_integer("logit_bias", token, 0, None)
            _check_number("logit_bias", bias, -100.0, 100.0)
        self._check_together()

    def _check_together(self) -> None:
        if self.top_p == 0:
            raise _invalid("top_p", "expected more than 0, got 0")
        if self.truncate_prompt_tokens == 0:
            raise _invalid(
                "truncate_prompt_tokens", "expected -1 (as many as fit), or at least 1, got 0"
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _invalid("min_tokens", f"expected at most max_tokens, which is {self.max_tokens}")
        if any(not isinstance(text, str) or not text for text in self._stops):
            raise _invalid("stop", "expected a text, or a list of texts, none of them empty")
        self._check_depth()

    def _check_depth(self) -> None:
        if self.cycles is not None and not re.fullmatch(CYCLES, str(self.cycles)):
            raise _invalid("cycles", f"expected H and L cycles as 2x3, got {self.cycles!r}")
        if self.effort is not None and self.effort not in EFFORTS:
            raise _invalid("effort", f"expected one of {', '.join(EFFORTS)}, got {self.effort!r}")
        if sum(value is not None for value in (self.cycles, self.max_steps, self.effort)) > 1:
            raise _invalid("effort", "expected at most one of cycles, max_steps, effort")

    @property
    def _depth(self) -> Depth | None:
        depth = Depth(self.cycles, self.max_steps, self.effort)
        return None if depth == Depth() else depth

    @property
    def _stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        if isinstance(self.stop, str):
            return (self.stop,)
        return tuple(self.stop)

    def task(self, prompt: Prompt, context_window: int) -> Generate:
        """Return the task for one prompt of a model with this context window, in tokens."""
        num_kept = self.truncate_prompt_tokens
        max_prompt_tokens = None
        # -1 sets no limit but the context window.
        if num_kept is not None and num_kept > 0:
            max_prompt_tokens = num_kept
        return Generate(
            prompt,
            self._sampling(context_window),
            condition=self.condition,
            overflow="clamp" if num_kept is None else "truncate",
            max_prompt_tokens=max_prompt_tokens,
            depth=self._depth,
        )

    def _sampling(self, context_window: int) -> Sampling:
        seed = self.seed
        if seed is None:
            seed = secrets.randbits(_SEED_BITS)
        max_tokens = self.max_tokens
        if max_tokens is None:
            max_tokens = context_window
        return Sampling(
            max_tokens=max_tokens,
            # A given seed may be any integer of 64 bits, signed or not; a task's has 63.
            seed=seed & ((1 << _SEED_BITS) - 1),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            stop=self._stops,
            n=self.n,
            min_p=self.min_p,
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            stop_ids=tuple(self.stop_token_ids or ()),
            logit_bias=tuple((self.logit_bias or {}).items()),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logprobs=self.logprobs,
        )


def _check_integer(name: str, value: object, least: int, most: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _invalid(name, f"expected a whole number, got {value!r}")
    if value < least or (most is not None and value > most):
        raise _invalid(name, f"expected {_range(least, most)}, got {value}")


def _check_number(name: str, value: object, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _invalid(name, f"expected a number, got {value!r}")
    if not least <= value <= most:
        raise _invalid(name, f"expected {_range(least, most)}, got {value}")


def _range(least: float, most: float | None) -> str:
    if most is None:
        return f"at least {least}"
    return f"{least} to {most}"


def _invalid(name: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: {problem}.", field=name)
