"""Runs lm-evaluation-harness some times in one process, as its command would: to import it takes
longer than to run it.

Reads a JSON object from standard input, of each evaluation its `model`, `model_args` and `tasks`;
writes one of their results and samples, by task, to the file that is named as its argument.
"""

import json
import sys
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

HERE = Path(__file__).parent


def main() -> None:
    tasks = TaskManager(include_path=str(HERE), include_defaults=False)
    asked: dict[str, dict[str, Any]] = json.load(sys.stdin)
    told = {name: evaluated(tasks, **evaluation) for name, evaluation in asked.items()}
    Path(sys.argv[1]).write_text(json.dumps(told))


def evaluated(
    manager: TaskManager, *, model: str, model_args: dict[str, Any], tasks: list[str]
) -> dict[str, Any]:
    is_chat = model == "local-chat-completions"
    told = simple_evaluate(
        model=model,
        model_args=model_args,
        tasks=tasks,
        task_manager=manager,
        apply_chat_template=is_chat,
    )
    return {
        task: {"results": told["results"][task], "samples": _samples(told["samples"][task])}
        for task in tasks
    }


def _samples(samples: list[dict[str, Any]]) -> list[Any]:
    """What the model answered to each problem, in the order of the file."""
    return [
        sample["filtered_resps"] if "acc" in sample else sample["resps"][0][0]
        for sample in _sorted(samples)
    ]


def _sorted(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(samples, key=lambda sample: int(sample["doc_id"]))


if __name__ == "__main__":
    main()
