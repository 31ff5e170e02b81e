"""`aios batch run`: what becomes of each line, and how a run goes on."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.cli.aios import main
from scripts.cli.runs import replies
from tests.fixtures.scripted_front import Scripted, scripted_front

Line = dict[str, Any]
GREEDY = {"temperature": 0, "max_tokens": 4}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "_LEAST_PAUSE_S", 0.001)
    monkeypatch.setattr(replies, "_MOST_PAUSE_S", 0.01)


def completion(name: str, prompt: str, **fields: Any) -> Line:
    body = {"prompt": prompt, **GREEDY, **fields}
    return {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body}


class Files:
    """The input and the output of runs."""

    def __init__(self, folder: Path) -> None:
        self.input = folder / "in.jsonl"
        self.output = folder / "out.jsonl"

    def write(self, *lines: Any) -> None:
        """Write the input: values of JSON, or text that is none."""
        texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        self.input.write_bytes(b"\n".join(texts) + b"\n")

    def run(self, *flags: str) -> int:
        return main(["batch", "run", str(self.input), str(self.output), *flags])

    def answers(self) -> list[Line]:
        return [json.loads(text) for text in self.output.read_text().splitlines()]

    def texts(self) -> list[str]:
        return [answer["response"]["body"]["choices"][0]["text"] for answer in self.answers()]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def code_of(answer: Line) -> str | None:
    return None if answer["error"] is None else answer["error"]["code"]


def test_every_prompt_is_answered_once(files: Files) -> None:
    """B66: the default model answers more prompts of unlike lengths than its batch holds.

    The answers have the order of the prompts, though they end in another one.
    """
    prompts: list[Any] = [f"{left} + {left + 7} = ?" for left in range(10, 30)]
    files.write(*prompts, {"prompt": "3 + 4 = ?", "n": 2, "max_tokens": 5})

    assert files.run("--max-batch-size", "4", "--model", "hrm-text-math") == 0

    *sums, twice = files.answers()
    assert [answer["line"] for answer in sums] == list(range(1, 21))
    for left, answer in enumerate(sums, start=10):
        (choice,) = answer["response"]["body"]["choices"]
        assert answer["custom_id"] == f"line-{answer['line']}"
        assert choice["finish_reason"] == "stop"
        assert choice["text"].endswith(f"\\boxed{{{2 * left + 7}}}"), choice
    assert len(twice["response"]["body"]["choices"]) == 2
    assert twice["response"]["body"]["usage"]["completion_tokens"] == 10


def test_each_line_that_cannot_be_answered_says_why(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write(
        completion("good", "abc"),
        b"nonsense",
        completion("good", "again"),
        {"custom_id": "elsewhere", "url": "/v1/batches", "body": {}},
        completion("other", "abc", model="absent"),
        completion("long", "abc", max_tokens=-1),
        completion("streamed", "abc", stream=True),
        b"",
        {"custom_id": "task", "url": "/v1/images/generations", "body": {"prompt": "a cat"}},
        {"messages": [{"role": "user", "content": "hello"}]},
    )

    assert files.run("--model", "echo") == 1

    told = []
    for answer in files.answers():
        status = answer["response"] and answer["response"]["status_code"]
        told.append((answer["line"], answer["custom_id"], status, code_of(answer)))
    assert told == [
        (1, "good", 200, None),
        (2, None, None, "invalid_json_line"),
        (3, "good", None, "duplicate_custom_id"),
        (4, "elsewhere", None, "mismatched_url"),
        (5, "other", 404, "model_not_found"),
        (6, "long", 400, "invalid_request"),
        (7, "streamed", 400, "invalid_request"),
        (9, "task", 400, "invalid_request"),
        (10, "line-10", 200, None),
    ]
    printed = capsys.readouterr().out
    assert "9 lines, 7 of them failed" in printed


def test_a_run_goes_on_with_lines_that_have_no_answer(files: Files) -> None:
    """After a crash that tore a line, and with lines that came in front and behind meanwhile."""
    lines: list[Any] = [completion(str(number), f"prompt {number}") for number in range(6)]
    files.write(*lines, b"nonsense")
    assert files.run("--model", "echo") == 1
    whole = files.output.read_bytes().splitlines(keepends=True)
    kept = [whole[4], whole[1], whole[6]]
    files.output.write_bytes(b"".join(kept) + whole[2][:50])

    lines = [completion("new", "first"), *lines, b"nonsense", completion("newer", "last")]
    files.write(*lines)
    assert files.run("--model", "echo") == 1

    answers = files.answers()
    # What is wrong with a line is told of its number, so the same text elsewhere is told anew.
    names = [answer["custom_id"] for answer in answers]
    assert names == ["new", "0", "1", "2", "3", "4", "5", None, "newer"]
    kept_answers = [json.loads(text) for text in kept[:2]]
    assert [answers[5], answers[2]] == kept_answers, "what was answered is not computed again"
    assert answers[7]["line"] == 8


def test_lines_that_failed_are_done_again_if_that_is_asked_for(files: Files) -> None:
    files.write(completion("a", "abc"), completion("b", "def", model="absent"))
    assert files.run("--model", "echo") == 1
    before = files.answers()

    files.write(completion("a", "abc"), completion("b", "def"))
    assert files.run("--model", "echo") == 1
    assert files.answers() == before

    assert files.run("--model", "echo", "--retry-failed") == 0
    answers = files.answers()
    assert answers[0] == before[0]
    assert [code_of(answer) for answer in answers] == [None, None]


def test_a_run_with_another_model_is_refused(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write(completion("a", "abc"))
    assert files.run("--model", "echo") == 0
    before = files.output.read_bytes()
    assert files.run("--model", "hrm-text-math") == 1
    assert "is of a run with model echo" in capsys.readouterr().err
    assert files.output.read_bytes() == before
    assert files.run("--model", "echo", "--restart") == 0
    assert files.answers()[0]["id"] != json.loads(before)["id"]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--model", "/absent/model"], "/absent/model"),
        (["--no-such-flag"], "no-such-flag"),
        (["--url", "http://127.0.0.1:1", "--threads", "1"], "--threads: no flag of a run by"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    files: Files, capsys: pytest.CaptureFixture[str], flags: list[str], problem: str
) -> None:
    files.write(completion("a", "abc"))
    assert files.run(*flags) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert problem in line


def test_input_and_output_are_files_with_lines(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    assert files.run("--model", "echo") == 1
    assert "No such file" in capsys.readouterr().err
    files.input.write_text("\n\n")
    assert files.run("--model", "echo") == 1
    assert "the file has none" in capsys.readouterr().err
    assert main(["batch", "run", str(files.input), str(files.input), "--model", "echo"]) == 1
    assert "another file for the answers" in capsys.readouterr().err
    assert files.input.read_text() == "\n\n"


def test_a_server_that_comes_and_goes_answers_every_line(files: Files) -> None:
    files.write(*[completion(str(number), f"prompt {number}") for number in range(8)])
    busy = Scripted(503, "queue_full")
    script = [None, busy, Scripted(0), Scripted(202), Scripted(429, "over_quota"), Scripted(502)]
    with scripted_front(*script) as front:
        assert files.run("--url", f"{front.url}/v1", "--concurrency", "3", "--model", "m") == 0
    assert files.texts() == [f"prompt {number}" for number in range(8)]
    assert len(set(front.keys)) == 8, "a line that is sent again has the key that it had"
    assert {body["model"] for body in front.bodies} == {"m"}
    assert {headers["X-Priority"] for headers in front.headers} == {"bulk"}


def test_a_line_that_was_lost_or_failed_is_sent_with_another_key(files: Files) -> None:
    files.write(completion("a", "abc"), completion("b", "def"))
    lost = Scripted(504, "queue_timeout")
    failed = Scripted(500, "worker_failed")
    with scripted_front(lost, failed, None, failed, failed, failed) as front:
        assert files.run("--url", front.url, "--concurrency", "1") == 1
    assert len(set(front.keys)) == 6
    answered, given_up = files.answers()
    assert code_of(answered) is None
    assert code_of(given_up) == "worker_failed"
    assert given_up["response"]["status_code"] == 500
    assert given_up["response"]["body"] == {"error": json.loads(failed.body)["error"]}


def test_refusals_of_a_server_are_answers_and_end_no_run(files: Files) -> None:
    files.write(completion("a", "abc"), completion("b", "def"), completion("c", "ghi"))
    refusals = [Scripted(400, "invalid_request", "prompt"), Scripted(413, text="too much")]
    with scripted_front(*refusals) as front:
        assert files.run("--url", front.url, "--concurrency", "1") == 1
    refused, too_much, answered = files.answers()
    assert (code_of(refused), code_of(too_much)) == ("invalid_request", "error")
    assert too_much["response"]["body"] == "too much"
    assert code_of(answered) is None


@pytest.mark.parametrize(
    ("replies_given", "flags", "problem"),
    [
        ([Scripted(401, "unauthorized")], [], "unauthorized."),
        ([Scripted(503, "no_worker")] * 9, ["--patience", "1"], "Given up"),
    ],
)
def test_a_server_that_answers_nothing_ends_the_run_that_goes_on_later(
    files: Files,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    replies_given: list[Scripted],
    flags: list[str],
    problem: str,
) -> None:
    files.write(completion("a", "abc"), completion("b", "def"))
    monkeypatch.setattr(replies, "_LEAST_PAUSE_S", 0.3)
    monkeypatch.setattr(replies, "_MOST_PAUSE_S", 0.3)
    with scripted_front(None, *replies_given) as front:
        assert files.run("--url", front.url, "--concurrency", "1", *flags) == 1
        told = capsys.readouterr().err
        assert problem in told
        assert "1 of 2 lines are in" in told
        front.script.clear()
        assert files.run("--url", front.url, "--concurrency", "1", *flags) == 0
    assert files.texts() == ["abc", "def"]
    assert len(set(front.keys)) == 2, "the line that was sent before is followed"
