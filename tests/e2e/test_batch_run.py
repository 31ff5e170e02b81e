"""`aios batch run` by the default model, in processes that are interrupted and killed."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.fixtures.e2e.serving import AIOS
from tests.fixtures.polling import wait_until

NUM_LINES = 80


def start(*words: object) -> "subprocess.Popen[str]":
    command = [*AIOS, "batch", "run", *map(str, words), "--model", "hrm-text-math"]
    command += ["--threads", "1", "--max-batch-size", "4"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_run_that_is_interrupted_and_killed_goes_on(tmp_path: Path) -> None:
    """Every line has one right answer, and lines that were done are not done again."""
    prompts = tmp_path / "in.jsonl"
    prompts.write_text("".join(f'"{left} + {left + 7} = ?"\n' for left in range(NUM_LINES)))
    out = tmp_path / "out.jsonl"
    seen: dict[str, str] = {}
    for number, end in ((10, signal.SIGINT), (30, signal.SIGKILL)):
        process = start(prompts, out)
        try:

            def are_there(process: Any = process, count: int = number) -> bool:
                assert process.poll() is None, "the run ended before it could be disturbed"
                return out.exists() and out.read_bytes().count(b"\n") >= count

            wait_until(are_there, f"{number} lines are there")
            process.send_signal(end)
            printed, _ = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        if end == signal.SIGINT:
            assert process.returncode == 130
            assert "the same command goes on from there" in printed
        for text in out.read_text().splitlines(keepends=True):
            if text.endswith("\n"):
                seen[json.loads(text)["custom_id"]] = text
    assert 30 <= len(seen) < NUM_LINES

    with start(prompts, out) as process:
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    lines = out.read_text().splitlines(keepends=True)
    assert len(lines) == NUM_LINES
    for left, text in enumerate(lines):
        answer = json.loads(text)
        assert answer["line"] == left + 1
        assert seen.get(answer["custom_id"], text) == text, "a line that was done was done again"
        [choice] = answer["response"]["body"]["choices"]
        assert choice["text"].endswith(f"\\boxed{{{2 * left + 7}}}"), choice
