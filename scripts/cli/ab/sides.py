"""The sides of a comparison: servers, their models, and requests that mean the same to each.

docs/baselines.md says how the fields correspond.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DIALECTS = ("aios", "openai", "tgi")
_PATHS = {"aios": "/generate_stream", "openai": "/completions", "tgi": "/generate_stream"}


@dataclass(frozen=True)
class Sampling:
    """The sampling parameters of all sides.

    A temperature of 0 is greedy, and a top_p of 1 cuts no tokens off.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Side:
    """A model of a server, and the dialect that the server is spoken to.

    `template` is put around each question; it holds `{problem}`. `cost` is of an hour of the server,
    in any currency.
    """

    name: str
    dialect: str
    url: str
    model: str | None = None
    template: str = "{problem}"
    cost: float | None = None

    @property
    def completions_url(self) -> str:
        return self.url + _PATHS[self.dialect]

    def prompt_of(self, question: str) -> str:
        return self.template.replace("{problem}", question)


def side_of(text: str) -> Side:
    """Return the side that [NAME=]DIALECT:URL[#MODEL] means. Raise ValueError."""
    name, equals, target = text.partition("=")
    if not equals or ":" in name:
        name = ""
        target = text
    dialect, _, rest = target.partition(":")
    url, _, model = rest.partition("#")
    if dialect not in DIALECTS or not url.startswith(("http://", "https://")):
        raise ValueError(
            f"expected [NAME=]DIALECT:URL[#MODEL] with {', '.join(DIALECTS)}, got {text!r}"
        )
    return Side(name or model or target, dialect, url.rstrip("/"), model or None)


def completion_body(side: Side, prompt: str, sampling: Sampling) -> dict[str, Any]:
    """Return the body of a streamed request in the dialect of a side."""
    body: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
    }
    if side.dialect == "aios":
        body["prompts"] = [prompt]
    elif side.dialect == "openai":
        body["prompt"] = prompt
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
        body["model"] = "local"
    else:
        body = {"inputs": prompt, "parameters": _tgi_parameters(sampling)}
    if side.model is not None:
        body["model"] = side.model
    return body


def _tgi_parameters(sampling: Sampling) -> dict[str, Any]:
    is_sampled = sampling.temperature > 0
    parameters: dict[str, Any] = {
        "max_new_tokens": sampling.max_tokens,
        "do_sample": is_sampled,
        "details": True,
    }
    # TGI refuses a temperature of 0 and a top_p of 1. Without the parameters it does the same.
    if is_sampled:
        parameters["temperature"] = sampling.temperature
        parameters["seed"] = sampling.seed
        if sampling.top_p < 1:
            parameters["top_p"] = sampling.top_p
    return parameters


@dataclass(frozen=True)
class Piece:
    """The part of an answer that a frame of a stream adds. `num_tokens` is that of the whole answer, if the
    frame tells it."""

    text: str = ""
    num_tokens: int | None = None
    error: str | None = None


def piece_of(dialect: str, frame: Mapping[str, Any]) -> Piece:
    """Return what a frame adds, in the dialect of its server."""
    error = frame.get("error")
    if error:
        return Piece(error=str(error))
    usage = frame.get("usage") or {}
    num_tokens = usage.get("completion_tokens")
    if dialect == "aios":
        return Piece(frame.get("text") or "", num_tokens)
    if dialect == "openai":
        text = ""
        for choice in frame.get("choices") or ():
            text += choice.get("text") or ""
        return Piece(text, num_tokens)
    details = frame.get("details") or {}
    token = frame.get("token") or {}
    text = "" if token.get("special") else token.get("text") or ""
    return Piece(text, details.get("generated_tokens"))
