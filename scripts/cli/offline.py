"""Complete a file of prompts in one batch, without a server and without Redis.

    python -m scripts.cli.offline prompts.jsonl answers.jsonl --model-path models/hrm-text-math

Each line of the input is a JSON string, or an object with `prompt` (a text or token ids) and any
parameter of `worker.llm.SamplingParams`, such as `max_tokens`, `temperature`, `seed`, `stop`, `n`
or `condition`. Each line of the output has the `index` of an input line, and its `choices` or an
`error`. The lines of the output are in the order in which the prompts end.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import Any, TextIO

from shared.accelerators import ACCELERATORS
from shared.errors import FleetError
from shared.settings.settings import DEFAULT_MODEL
from worker.llm import LLM, PromptInput, RequestOutput, SamplingParams

_DEFAULTS = {"max_tokens": 128, "seed": 0, "temperature": 0.0}

Task = tuple[PromptInput, SamplingParams]


def answer(llm: LLM, tasks: list[Task]) -> Iterator[dict[str, Any]]:
    """Yield the line of each task as it ends: its index and choices, or an error."""
    indexes: dict[Future[RequestOutput], int] = {}
    for index, (prompt, params) in enumerate(tasks):
        try:
            indexes[llm.submit(prompt, params)] = index
        except FleetError as error:
            yield {"index": index, "error": error.message}
    for future in as_completed(indexes):
        try:
            yield _line(indexes[future], future.result())
        except FleetError as error:
            yield {"index": indexes[future], "error": error.message}


def read_tasks(lines: TextIO) -> list[Task]:
    """Return a task for each line.

    Raise ValueError, with the number of the line, for the first line that is no task.
    """
    tasks: list[Task] = []
    for number, line in enumerate(lines, start=1):
        try:
            value: Any = json.loads(line)
            if isinstance(value, str):
                value = {"prompt": value}
            fields: dict[str, Any] = dict(value)
            prompt = fields.pop("prompt")
            tasks.append((prompt, SamplingParams(**(_DEFAULTS | fields))))
        except KeyError:
            raise ValueError(f"line {number}: expected a prompt") from None
        except (ValueError, TypeError, FleetError) as error:
            raise ValueError(f"line {number}: {error}") from None
    return tasks


def _line(index: int, output: RequestOutput) -> dict[str, Any]:
    choices = []
    for choice in output.outputs:
        choices.append({"text": choice.text, "finish_reason": choice.finish_reason})
    return {"index": index, "choices": choices}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompts", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--model-path", default=str(DEFAULT_MODEL))
    parser.add_argument("--max-batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quantize", choices=list(ACCELERATORS), default="none")
    args = parser.parse_args(argv)
    with args.prompts.open() as lines:
        tasks = read_tasks(lines)
    settings = {
        "max_batch_size": args.max_batch_size,
        "threads": args.threads,
        "quantize": args.quantize,
    }
    with LLM(args.model_path, **settings) as llm, args.answers.open("w") as out:
        for line in answer(llm, tasks):
            print(json.dumps(line, ensure_ascii=False), file=out, flush=True)
    print(f"{len(tasks)} prompts answered", file=sys.stderr)


if __name__ == "__main__":
    main()
