"""Run several evaluations of lm-evaluation-harness in one process.

Its import takes longer than a run. Standard input is a JSON object with the `model`, `model_args`
and `tasks` of each evaluation, and whether it `is_chat`. The file of the argument gets an object
with the results and samples of each evaluation, by task.
"""

import json
import sys
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from scripts.cli.lm_harness.command import register

HERE = Path(__file__).parent


def main() -> None:
    register()
    tasks = TaskManager(include_path=str(HERE), include_defaults=False)
    evaluations: dict[str, dict[str, Any]] = json.load(sys.stdin)
    results = {}
    for name, evaluation in evaluations.items():
        results[name] = evaluated(tasks, **evaluation)
    Path(sys.argv[1]).write_text(json.dumps(results))


def evaluated(
    manager: TaskManager,
    *,
    model: str,
    model_args: dict[str, Any],
    tasks: list[str],
    is_chat: bool = False,
) -> dict[str, Any]:
    evaluation = simple_evaluate(
        model=model,
        model_args=model_args,
        tasks=tasks,
        task_manager=manager,
        apply_chat_template=is_chat,
    )
    results = {}
    for task in tasks:
        results[task] = {
            "results": evaluation["results"][task],
            "samples": _samples(evaluation["samples"][task]),
        }
    return results


def _samples(samples: list[dict[str, Any]]) -> list[Any]:
    """Return the model's answer to each problem, in the order of the file."""
    answers = []
    for sample in sorted(samples, key=lambda sample: int(sample["doc_id"])):
        if "acc" in sample:
            answers.append(sample["filtered_resps"])
        else:
            answers.append(sample["resps"][0][0])
    return answers


if __name__ == "__main__":
    main()
