"""Offline inference turns a file of prompts into a file of answers."""

import json
from pathlib import Path

import pytest

from scripts.cli.offline import main


def run(tmp_path: Path, lines: list[object], *flags: str) -> dict[int, dict[str, object]]:
    prompts = tmp_path / "in.jsonl"
    answers = tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))

    main([str(prompts), str(answers), *flags])

    by_index = {}
    for line in answers.read_text().splitlines():
        answer = json.loads(line)
        by_index[answer["index"]] = answer
    return by_index


def test_every_prompt_is_answered_once(tmp_path: Path) -> None:
    """B66: the default model answers more prompts of unlike lengths than its batch holds."""
    lines: list[object] = []
    for left in range(10, 30):
        lines.append(f"{left} + {left + 7} = ?")
    lines.append({"prompt": "3 + 4 = ?", "n": 2, "max_tokens": 5})

    answers = run(tmp_path, lines, "--max-batch-size", "4")

    assert sorted(answers) == list(range(21))
    for index in range(20):
        (choice,) = answers[index]["choices"]  # type: ignore[misc]
        assert choice["finish_reason"] == "stop"
        assert choice["text"].endswith(f"\\boxed{{{2 * (index + 10) + 7}}}"), choice
    assert len(answers[20]["choices"]) == 2  # type: ignore[arg-type]


def test_a_line_that_is_no_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2"):
        run(tmp_path, ["hi", {"prompt": "x", "max_tokens": "many"}], "--model-path", "echo")
