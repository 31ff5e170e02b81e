"""Ask the models of config/models.yaml, and print what they answer as the table of docs/tasks.md.

    aios models fetch minilm minilm-sentiment smollm2-135m-instruct whisper-tiny-en efficientnet-lite0 silero-vad \\
        pp-ocr-v6
    python -m scripts.tools.try_models --picture chelsea.png --page page.png --sound beckett.wav

Each is asked twice. The time is that of the second request, over HTTP.
"""

import argparse
import base64
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter as now
from typing import Any

import httpx

from scripts.bench.measure import header
from scripts.bench.serve import fleet
from scripts.tools.generated_pages import code, table_of
from shared.settings.paths import fetched_models_folder
from shared.settings.settings import DEFAULT_MODEL

_SUM = "Compute: 347 + 285"
_QUESTION = "What is the capital of France?"
_PRAISE = "I love this airline, the crew was wonderful!"
_PAIR = ["A man is eating food.", "Someone has a meal."]


@dataclass(frozen=True)
class Question:
    """A question to a model: its path and body, how it is told, and the answer in an answer."""

    task: str
    model: str
    path: str
    body: dict[str, Any]
    told: str
    answer: Callable[[Any], str]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the machine and the table."""
    args = _arguments(argv)
    questions = _questions(args.picture, args.page, args.sound)
    models = [f"{DEFAULT_MODEL.name}={DEFAULT_MODEL}"]
    for name in dict.fromkeys(question.model for question in questions):
        if name != DEFAULT_MODEL.name:
            models.append(f"{name}={Path(fetched_models_folder()) / name}")
    flags = ["--workers", "1", "--threads", "1"]
    for model in models:
        flags += ["--model", model]
    print(header(threads=1))
    rows = []
    with fleet(flags) as url, httpx.Client(base_url=url, timeout=300) as client:
        for question in questions:
            rows.append(_row(client, question))
    print(table_of(["task", "model", "asked", "answer", "seconds"], rows))
    return 0


def _row(client: httpx.Client, question: Question) -> list[str]:
    for _ in range(2):
        begun_s = now()
        answer = client.post(question.path, json=question.body | {"model": question.model})
        answer.raise_for_status()
        seconds = now() - begun_s
    text = question.answer(answer.json())
    return [code(question.task), code(question.model), question.told, text, f"{seconds:.2f}"]


def _questions(picture: Path, page: Path, sound: Path) -> list[Question]:
    image = base64.b64encode(picture.read_bytes()).decode()
    text = base64.b64encode(page.read_bytes()).decode()
    audio = base64.b64encode(sound.read_bytes()).decode()
    return [
        Question(
            "generate",
            DEFAULT_MODEL.name,
            "/v1/completions",
            {"prompt": _SUM, "max_tokens": 100, "temperature": 0},
            _SUM,
            lambda answer: " / ".join(answer["choices"][0]["text"].split("\n")),
        ),
        Question(
            "generate",
            "smollm2-135m-instruct",
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": _QUESTION}], "temperature": 0},
            _QUESTION,
            lambda answer: answer["choices"][0]["message"]["content"],
        ),
        Question(
            "embed",
            "minilm",
            "/v1/embeddings",
            {"input": _PAIR},
            " and ".join(f'"{text}"' for text in _PAIR),
            _cosine,
        ),
        _inference("classify", "minilm-sentiment", "text-classification", _PRAISE, f'"{_PRAISE}"'),
        _inference("image-classification", "efficientnet-lite0", "", image, picture.name),
        Question(
            "optical-character-recognition",
            "pp-ocr-v6",
            "/api/inference",
            {"task": "optical-character-recognition", "inputs": text},
            page.name,
            lambda answer: " / ".join(answer["result"]["text"].split("\n")),
        ),
        Question(
            "automatic-speech-recognition",
            "whisper-tiny-en",
            "/v1/audio/transcriptions",
            {"file": audio},
            sound.name,
            lambda answer: answer["text"],
        ),
        Question(
            "voice-activity-detection",
            "silero-vad",
            "/api/inference",
            {"task": "voice-activity-detection", "inputs": audio},
            sound.name,
            _parts,
        ),
    ]


def _inference(task: str, model: str, name: str, inputs: str, told: str) -> Question:
    body = {"task": name or task, "inputs": inputs, "options": {"top_k": 3}}
    return Question(task, model, "/api/inference", body, told, _labels)


def _labels(answer: Any) -> str:
    labels = answer["result"]["labels"]
    return ", ".join(f"{label['label']} {label['score']:.2f}" for label in labels)


def _cosine(answer: Any) -> str:
    first, second = (row["embedding"] for row in answer["data"])
    cosine = sum(a * b for a, b in zip(first, second, strict=True))
    return f"{len(first)} numbers each, cosine {cosine:.2f}"


def _parts(answer: Any) -> str:
    parts = answer["result"]["parts"]
    return ", ".join(f"{part['start']:.2f} to {part['end']:.2f} s" for part in parts)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--page", type=Path, required=True, help="a picture with text in it")
    parser.add_argument("--sound", type=Path, required=True, help="with speech in English")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
