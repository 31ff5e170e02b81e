"""One request of every kind that creates work, seeded, for a fleet with a text model and a Sudoku
network; and where an answer and the frames of its stream have their texts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

PROMPT = "Tell me of the sea"
SUDOKU = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SAMPLED: dict[str, Any] = {
    "max_tokens": 12,
    "min_tokens": 12,
    "temperature": 2.0,
    "repetition_penalty": 4.0,
    "seed": 7,
}
"""Hot enough that even a model which is sure of itself says something else with another seed,
broken characters too."""
LONG: dict[str, Any] = {"max_tokens": 400, "min_tokens": 400, "seed": 7}
DIALOGUE: dict[str, Any] = {"messages": [{"role": "user", "content": PROMPT}]}


@dataclass(frozen=True)
class Form:
    """`texts` are those of a whole answer; `pieces` are what a frame adds to which of them."""

    texts: Callable[[Any], list[str]]
    pieces: Callable[[Any], Iterable[tuple[int, str]]]


def _indexed(frame: Any) -> list[tuple[int, str]]:
    return [(frame["index"], frame["text"])] if "index" in frame else []


COMPLETIONS = Form(
    lambda body: [choice["text"] for choice in body["choices"]],
    lambda frame: [(choice["index"], choice["text"]) for choice in frame["choices"]],
)
CHAT = Form(
    lambda body: [choice["message"]["content"] for choice in body["choices"]],
    lambda frame: [
        (choice["index"], choice["delta"].get("content", "")) for choice in frame["choices"]
    ],
)
HRM = Form(lambda body: body["completions"], _indexed)
PROMPTED = Form(lambda body: body.get("generated_texts") or [body["generated_text"]], _indexed)
SOLVED = Form(lambda body: [body["solution"]], _indexed)
TGI = Form(lambda body: [body["generated_text"]], lambda frame: [(0, frame["token"]["text"])])
LISTED = Form(lambda body: [body[0]["generated_text"]], TGI.pieces)
INFERENCE = Form(
    lambda body: [body["result"]["text"]],
    lambda frame: [(0, frame["token"])] if "token" in frame else [],
)


@dataclass(frozen=True)
class Asked:
    """`form`: of text; None for an answer whose stream is the answer itself in one frame. `stream`
    is where the stream is, and what in the body asks for it; `is_bare`: it is bare text, unless the
    caller accepts events."""

    task: str
    path: str
    body: dict[str, Any]
    form: Form | None = None
    stream: tuple[str, dict[str, Any]] = ("", {})
    is_bare: bool = False


def _text(task: str, path: str, body: dict[str, Any], form: Form, **more: Any) -> Asked:
    return Asked(
        task, path, body | SAMPLED, form, more.pop("stream", (path, {"stream": True})), **more
    )


EVERYTHING = [
    _text(
        "generate",
        "/generate",
        {"prompts": [PROMPT, "Once"], "n": 2},
        HRM,
        stream=("/generate_stream", {}),
    ),
    _text(
        "generate",
        "/generate",
        {"prompt": PROMPT, "num_return_sequences": 2},
        PROMPTED,
        is_bare=True,
    ),
    _text("generate", "/generate", {"inputs": PROMPT, "parameters": SAMPLED}, TGI),
    _text("generate", "/", {"inputs": PROMPT, "parameters": SAMPLED}, LISTED),
    _text(
        "completions",
        "/v1/completions",
        {"prompt": [PROMPT, "Once"], "n": 2, "logprobs": 1},
        COMPLETIONS,
    ),
    _text("chat", "/v1/chat/completions", DIALOGUE | {"n": 2}, CHAT),
    _text("solve_math", "/solve/math", {"problem": PROMPT}, SOLVED, is_bare=True),
    _text("solve_coding", "/solve/coding", {"problem": PROMPT}, SOLVED, is_bare=True),
    _text(
        "generate",
        "/api/inference",
        {"task": "text-generation", "inputs": PROMPT, "options": SAMPLED},
        INFERENCE,
        stream=("/api/inference/stream", {}),
    ),
    Asked(
        "score",
        "/loglikelihood",
        {"prompts": [PROMPT, "a", PROMPT], "continuations": ["2x", "b", "x"]},
    ),
    Asked("score_rolling", "/loglikelihood_rolling", {"prompts": [PROMPT, "Once"]}),
    Asked("embed", "/v1/embeddings", {"input": [PROMPT, "Once"]}),
    Asked("embed", "/api/inference", {"task": "feature-extraction", "inputs": PROMPT}),
    Asked("tokenize", "/tokenize", {"prompt": PROMPT, "return_token_strs": True}),
    Asked("detokenize", "/detokenize", {"tokens": [26, 228, 18]}),
    Asked("solve", "/v1/puzzles/solve", {"grids": [SUDOKU, "." * 81], "model": "sudoku"}),
    Asked(
        "echo_task", "/v1/echo-task", {"text": PROMPT, "steps": 3, "step_ms": 5, "model": "tasks"}
    ),
]

JSON, EVENTS, TEXT = "application/json", "text/event-stream", "text/plain"
_STREAM = {"stream": True}
_GENERATE = {"task": "text-generation", "inputs": PROMPT, "options": LONG}
STREAMS: list[tuple[str, str, dict[str, Any]]] = [
    ("/generate", TEXT, {"prompt": PROMPT} | LONG | _STREAM),
    ("/generate", EVENTS, {"prompt": PROMPT} | LONG | _STREAM),
    ("/generate", EVENTS, {"inputs": PROMPT, "parameters": LONG} | _STREAM),
    ("/generate_stream", EVENTS, {"prompts": [PROMPT]} | LONG),
    ("/generate_stream", EVENTS, {"prompt": PROMPT} | LONG),
    ("/generate_stream", EVENTS, {"inputs": PROMPT, "parameters": LONG}),
    ("/", EVENTS, {"inputs": PROMPT, "parameters": LONG} | _STREAM),
    ("/solve/math", TEXT, {"problem": PROMPT} | LONG | _STREAM),
    ("/solve/math", EVENTS, {"problem": PROMPT} | LONG | _STREAM),
    ("/solve/coding", TEXT, {"problem": PROMPT} | LONG | _STREAM),
    ("/solve/coding", EVENTS, {"problem": PROMPT} | LONG | _STREAM),
    ("/api/inference", EVENTS, _GENERATE | _STREAM),
    ("/api/inference/stream", EVENTS, _GENERATE),
    ("/v1/completions", EVENTS, {"prompt": PROMPT} | LONG | _STREAM),
    ("/v1/chat/completions", EVENTS, DIALOGUE | LONG | _STREAM),
    ("/v1/jobs", EVENTS, {"task": "chat"} | DIALOGUE | LONG | _STREAM),
    (
        "/v1/echo-task",
        EVENTS,
        {"text": "a", "steps": 1000, "step_ms": 60, "model": "tasks"} | _STREAM,
    ),
]
"""Every stream there is, by what it is sent as: four hundred tokens each, or a minute, with nothing
that would end them before."""
