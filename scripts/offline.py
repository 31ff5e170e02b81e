"""Answer a file of prompts with one engine and continuous batching: no server, no Redis.

    python -m scripts.offline prompts.jsonl answers.jsonl --model-path models/sample-hrm-text

Each line in is a JSON string, or an object with `prompt` and any of `max_tokens`, `temperature`, `top_p`, `top_k`,
`seed`, `stop`, `n`, `condition`. Each line out has the `index` of one in and its `choices`, in the order of ending.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import msgspec

from shared.messages import Done, Generate, Sampling
from shared.settings import SAMPLE_MODEL
from worker import device
from worker.engine import Engine
from worker.registry import load_runner
from worker.request import Emission, Work
from worker.runners.base import Runner, RunnerOptions

_SAMPLING = {"max_tokens": 128, "seed": 0, "temperature": 0.0}


def answer(runner: Runner, tasks: list[Generate]) -> Iterator[dict[str, Any]]:
    """The answer to each task as it ends: its index, texts and reasons, or an error."""
    news: list[Emission] = []
    engine = Engine(runner, news.extend)
    texts = [[""] * task.sampling.n for task in tasks]
    for index, task in enumerate(tasks):
        engine.submit(Work(str(index), runner.encode(task), task.sampling))
    while engine.has_work:
        engine.step()
        for item in news:
            texts[int(item.key)][item.choice] += item.text
            if item.ended is not None:
                yield _line(int(item.key), texts[int(item.key)], item)
        news.clear()


def read_tasks(lines: TextIO) -> list[Generate]:
    """One task for each line; ValueError naming the line that is none."""
    tasks = []
    for number, line in enumerate(lines, start=1):
        try:
            said = json.loads(line)
            fields = {"prompt": said} if isinstance(said, str) else dict(said)
            task = {name: fields.pop(name) for name in ("prompt", "condition") if name in fields}
            sampling = msgspec.convert(_SAMPLING | fields, Sampling)
            tasks.append(msgspec.convert(task | {"sampling": sampling, "type": "generate"}, Generate))
        except (ValueError, TypeError) as error:
            raise ValueError(f"line {number}: {error}") from None
    return tasks


def _line(index: int, texts: list[str], item: Emission) -> dict[str, Any]:
    if not isinstance(item.ended, Done):
        return {"index": index, "error": item.ended.message if item.ended else ""}
    reasons = item.ended.finish_reasons or (item.ended.finish_reason,)
    pairs = zip(texts, reasons, strict=True)
    return {"index": index, "choices": [{"text": text, "finish_reason": reason} for text, reason in pairs]}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--model-path", default=str(SAMPLE_MODEL))
    parser.add_argument("--max-batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quantize", choices=["none", "int8"], default="none")
    args = parser.parse_args(argv)
    device.use_threads(args.threads)
    with args.prompts.open() as lines:
        tasks = read_tasks(lines)
    options = RunnerOptions(path=args.model_path, max_batch=args.max_batch_size, quantize=args.quantize)
    runner = load_runner("auto", options)
    with args.answers.open("w") as out:
        for line in answer(runner, tasks):
            print(json.dumps(line, ensure_ascii=False), file=out, flush=True)
    print(f"{len(tasks)} prompts answered", file=sys.stderr)


if __name__ == "__main__":
    main()
