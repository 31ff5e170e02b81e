"""`aios puzzles solve` with a real network: by a fleet whose processes are killed, and by itself."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from scripts.cli.aios import main
from tests.fixtures.e2e.serving import AIOS, serving
from tests.fixtures.polling import wait_until
from tests.fixtures.redis_server import RedisServer
from tests.fixtures.worker.puzzle_nets import Net, write_checkpoint

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
NUM_PUZZLES = 400
BATCH = 8
NUM_STEPS = 32
"""So many that a run of the tiny network lasts long enough to be disturbed."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sudoku")
    write_checkpoint(
        folder,
        Net(halt_max_steps=NUM_STEPS),
        filename="step_100",
        data_path="data/sudoku-extreme-1k-aug-1000",
    )
    return folder


@pytest.fixture
def puzzles(tmp_path: Path) -> Path:
    """Return a file of puzzles, of which no two are equal."""
    path = tmp_path / "puzzles.txt"
    lines = [f"{number:04}{PUZZLE[4:]}\n" for number in range(NUM_PUZZLES)]
    path.write_text("".join(lines))
    return path


@contextmanager
def solving(*words: object) -> Iterator["subprocess.Popen[str]"]:
    """Run `aios puzzles solve` in a process of its own."""
    command = [*AIOS, "puzzles", "solve", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def wait_for_lines(path: Path, count: int, process: "subprocess.Popen[str]") -> None:
    """Return when the output has so many lines, and while its run goes on."""

    def are_there() -> bool:
        assert process.poll() is None, "the run ended before it could be disturbed"
        return path.exists() and path.read_bytes().count(b"\n") >= count

    wait_until(are_there, f"{count} lines are there")


def lines_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_a_run_survives_ctrl_c_and_the_death_of_a_worker_and_of_the_front(
    model: Path, puzzles: Path, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Every puzzle has one line, and was one job: none that was finished was computed again."""
    redis_server.flush()
    out = tmp_path / "out.jsonl"
    flags = ["--model", f"sudoku={model}", "--threads", "1", "--max-batch-size", "16"]
    flags += ["--redis-url", redis_server.url]
    with serving(*flags) as fleet:
        words = [puzzles, "--out", out, "--server-url", fleet.url]
        words += ["--model", "sudoku", "--batch", BATCH, "--concurrency", 4]
        with solving(*words) as process:
            wait_for_lines(out, 40, process)
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=60)
        assert process.returncode == 130, said
        num_done = len(lines_in(out))
        assert 40 <= num_done < NUM_PUZZLES
        assert said == (
            f"aios puzzles: {num_done} of {NUM_PUZZLES} puzzles are in {out}; "
            "the same command goes on from there\n"
        )

        with solving(*words) as process:
            wait_for_lines(out, num_done + 40, process)
            [worker] = fleet.children("worker")
            worker.kill()
            wait_for_lines(out, num_done + 120, process)
            [front] = fleet.children("api")
            front.kill()
            said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said
        assert "Trying again." in said, "the front was away for a while"
        assert not worker.is_running()
        assert not front.is_running()

        lines = lines_in(out)
        assert sorted(line["id"] for line in lines) == list(range(1, NUM_PUZZLES + 1))
        for line in lines:
            assert line["steps"] == NUM_STEPS
            assert len(line["grid"]) == 81
        assert f"{NUM_PUZZLES} puzzles" in said
        assert f"; {num_done} were done before" in said

        with Redis.from_url(redis_server.url) as redis:
            states = [redis.hget(name, "state") for name in redis.scan_iter("aios:{*}:job:*")]
            assert states == [b"done"] * NUM_PUZZLES
            # There was one request for each group: those under way at Ctrl-C were followed.
            assert len(redis.keys("aios:{*}:request:*")) == NUM_PUZZLES // BATCH


def test_a_model_in_this_process_says_what_a_fleet_says(
    model: Path, puzzles: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    redis_server.flush()
    here = tmp_path / "here.jsonl"
    words = ["puzzles", "solve", str(puzzles), "--limit", "5", "--max-steps", "3", "--batch", "2"]
    assert main([*words, "--path", str(model), "--out", str(here)]) == 0

    there = tmp_path / "there.jsonl"
    flags = ["--model", f"sudoku={model}", "--threads", "1", "--redis-url", redis_server.url]
    with serving(*flags) as fleet:
        assert main([*words, "--server-url", fleet.url, "--out", str(there)]) == 0

    by_fleet = {line["id"]: line for line in lines_in(there)}
    lines = lines_in(here)
    assert [line["id"] for line in lines] == [1, 2, 3, 4, 5]
    for line in lines:
        expected = by_fleet[line["id"]]
        assert line.keys() == expected.keys()
        assert line.pop("confidence") == pytest.approx(expected.pop("confidence"), abs=1e-5)
        assert line == expected


def test_a_run_in_this_process_survives_ctrl_c(model: Path, puzzles: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    words = [puzzles, "--limit", 24, "--out", out, "--path", model]
    words += ["--batch", "2", "--max-steps", 4 * NUM_STEPS]
    with solving(*words) as process:
        wait_for_lines(out, 4, process)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    num_done = len(lines_in(out))
    assert "the same command goes on from there" in said

    with solving(*words) as process:
        said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert f"; {num_done} were done before" in said
    ids = [line["id"] for line in lines_in(out)]
    assert ids == list(range(1, 25))


def test_what_a_model_refuses_is_in_its_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    puzzles = tmp_path / "a.txt"
    puzzles.write_text(f"{PUZZLE}\n1...034021430..1\n{PUZZLE}\n")
    out = tmp_path / "out.jsonl"
    words = ["puzzles", "solve", str(puzzles), "--out", str(out), "--path", str(model)]
    assert main([*words, "--max-steps", "1"]) == 1
    assert capsys.readouterr().out.startswith("3 puzzles  0 valid (0.0 %)  1 failed\n")
    first, second, third = lines_in(out)
    assert second.keys() == {"id", "puzzle", "error"}
    assert second["error"].startswith("grid: expected 9 rows of 9 numbers")
    assert first["grid"] == third["grid"]

    assert main([*words, "--max-steps", "100000", "--restart"]) == 1
    assert "max_steps: expected" in capsys.readouterr().err
    assert main([*words[:-1], str(tmp_path / "nothing"), "--restart"]) == 2
