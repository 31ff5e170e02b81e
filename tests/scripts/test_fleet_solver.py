"""Groups of puzzles are solved by a fleet, through everything that a front may say or not say."""

import time
from collections.abc import Iterator

import pytest

from scripts.cli.fleet_tool import ToolError
from scripts.cli.runs import replies
from scripts.cli.solving.fleet_solver import FleetSolver
from scripts.cli.solving.groups import Answer, Group
from scripts.cli.solving.puzzle_files import PuzzleRecord
from tests.fixtures.scripted_front import Scripted, ScriptedFront, scripted_front

NOBODY = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "_LEAST_PAUSE_S", 0.001)
    monkeypatch.setattr(replies, "_MOST_PAUSE_S", 0.01)


def group(*puzzles: str) -> Group:
    return [PuzzleRecord(number, puzzle) for number, puzzle in enumerate(puzzles)]


def solver(
    url: str,
    notes: list[str] | None = None,
    *,
    run_id: str = "run",
    concurrency: int = 1,
    patience_s: float = 60.0,
    api_key: str | None = None,
    **fields: object,
) -> FleetSolver:
    return FleetSolver(
        url,
        run_id,
        fields=fields,
        concurrency=concurrency,
        patience_s=patience_s,
        note=(notes if notes is not None else []).append,
        api_key=api_key,
    )


def answers(solver: FleetSolver, *groups: Group) -> list[Answer]:
    found = []
    for _, group_answers in solver.solve_all(iter(groups)):
        found += group_answers
    return found


def attempts(front: ScriptedFront) -> list[str]:
    """Return the last part of each request's key, which counts its attempts."""
    return [key.rpartition("-")[2] for key in front.keys]


def test_a_request_has_all_that_the_run_has() -> None:
    with scripted_front() as front:
        found = answers(
            solver(front.url + "/", api_key="secret", model="m", max_steps=4), group("1...", "2...")
        )
    assert found == [
        {"grid": "1...", "confidence": 0.5, "steps": 3, "is_halted": True},
        {"grid": "2...", "confidence": 0.5, "steps": 3, "is_halted": True},
    ]
    assert front.bodies == [{"model": "m", "max_steps": 4, "grids": ["1...", "2..."]}]
    assert front.headers[0]["Authorization"] == "Bearer secret"
    assert front.headers[0]["X-On-Disconnect"] == "continue"


def test_an_identifier_goes_along() -> None:
    with scripted_front() as front:
        answers(solver(front.url), [PuzzleRecord("a/0", [[1]], identifier="a")])
    assert front.bodies == [{"identifier": "a", "grids": [[[1]]]}]


def test_a_key_is_that_of_the_run_and_the_puzzles() -> None:
    with scripted_front() as front:
        for run_id, puzzles in (("a", "xy"), ("a", "xy"), ("b", "xy"), ("a", "xyz")):
            answers(solver(front.url, run_id=run_id), group(*puzzles))
    first, again, other_run, other_group = front.keys
    assert first == again
    assert len({first, other_run, other_group}) == 3
    assert len(first) <= 255


@pytest.mark.parametrize(
    "reply",
    [
        Scripted(0),
        Scripted(202, text='{"id": "1", "state": "running"}'),
        Scripted(429, "queue_full"),
        Scripted(503, "no_worker"),
        Scripted(503, "draining"),
        Scripted(503, "broker_unavailable"),
        Scripted(502, text="<html>Bad gateway</html>"),
        Scripted(200, text="<html>"),
    ],
)
def test_work_that_may_be_there_is_asked_for_again(reply: Scripted) -> None:
    """The key stays, so that it is followed, and nothing is computed twice."""
    notes: list[str] = []
    with scripted_front(reply, reply) as front:
        assert len(answers(solver(front.url, notes), group("1...", "2..."))) == 2
    assert attempts(front) == ["0", "0", "0"]
    assert len(front.keys) == 3
    assert len(set(front.keys)) == 1
    if reply.status != 202:
        assert len(notes) == 2
        assert notes[0].startswith(f"{front.url}/v1/puzzles/solve: ")
        assert notes[0].endswith(" Trying again.")


def test_a_front_says_when_to_ask_again() -> None:
    with scripted_front(Scripted(429, "rate_limited", retry_after="1")) as front:
        started_s = time.monotonic()
        assert len(answers(solver(front.url), group("1..."))) == 1
        assert time.monotonic() - started_s >= 1.0


@pytest.mark.parametrize(
    "reply",
    [
        Scripted(409, "idempotency_conflict", "Idempotency-Key"),
        Scripted(404, "job_not_found"),
        Scripted(499, "cancelled"),
        Scripted(503, "shut_down"),
        Scripted(503, "model_failed"),
    ],
)
def test_work_that_is_lost_is_asked_for_under_another_key(reply: Scripted) -> None:
    with scripted_front(reply) as front:
        assert len(answers(solver(front.url), group("1...", "2..."))) == 2
    assert attempts(front) == ["0", "1"]


@pytest.mark.parametrize(
    "refusal",
    [
        Scripted(400, "invalid_request", "grid"),
        Scripted(400, "invalid_request", "grids"),
        Scripted(400, "invalid_request", "identifier"),
    ],
)
def test_a_puzzle_that_is_refused_has_an_error_and_the_others_have_answers(
    refusal: Scripted,
) -> None:
    with scripted_front() as front:
        front.refusal = refusal
        found = answers(solver(front.url), group("1...", "bad", "3...", "4..."))
    assert found[1] == {"error": f"{refusal.code}."}
    assert [answer.get("grid") for answer in found] == ["1...", None, "3...", "4..."]
    assert [len(body["grids"]) for body in front.bodies] == [4, 2, 1, 1, 2]


@pytest.mark.parametrize(
    "failure",
    [
        Scripted(500, "worker_failed"),
        Scripted(500, "worker_crashed"),
        Scripted(503, "out_of_memory"),
        Scripted(504, "deadline_exceeded"),
    ],
)
def test_what_the_server_fails_at_is_tried_alone_and_a_few_times(failure: Scripted) -> None:
    with scripted_front() as front:
        front.refusal = failure
        found = answers(solver(front.url), group("1...", "bad"))
    assert found[0]["grid"] == "1..."
    assert found[1] == {"error": f"{failure.code}."}
    assert [len(body["grids"]) for body in front.bodies] == [2, 1, 1, 1, 1]
    assert attempts(front) == ["0", "0", "0", "1", "2"]

    # One that is solved in the end is not refused.
    with scripted_front(failure, failure) as front:
        (answer,) = answers(solver(front.url), group("1..."))
    assert answer["grid"] == "1..."


@pytest.mark.parametrize(
    "reply", [Scripted(413, "payload_too_large"), Scripted(400, "invalid_request")]
)
def test_a_group_that_is_more_than_a_request_may_have_is_divided(reply: Scripted) -> None:
    with scripted_front(reply) as front:
        assert len(answers(solver(front.url), group("1...", "2..."))) == 2
    assert [len(body["grids"]) for body in front.bodies] == [2, 1, 1]
    with scripted_front(reply) as front, pytest.raises(ToolError, match=reply.code):
        answers(solver(front.url), group("1..."))


def test_a_group_that_waits_too_long_is_divided() -> None:
    timeout = Scripted(503, "queue_timeout")
    with scripted_front(timeout, timeout) as front:
        assert len(answers(solver(front.url), group("1...", "2..."))) == 2
    assert [len(body["grids"]) for body in front.bodies] == [2, 1, 1, 1]
    assert attempts(front) == ["0", "0", "1", "0"]


@pytest.mark.parametrize(
    "reply",
    [
        Scripted(400, "invalid_request", "max_steps"),
        Scripted(400, "invalid_request", "model"),
        Scripted(401, "invalid_api_key"),
        Scripted(403, "permission_denied"),
        Scripted(404, "model_not_found", "model"),
        Scripted(404, text="<html>"),
        Scripted(301, text=""),
        Scripted(200, text='{"solutions": []}'),
    ],
)
def test_what_concerns_the_whole_run_ends_it(reply: Scripted) -> None:
    with scripted_front(reply) as front, pytest.raises(ToolError, match="/v1/puzzles/solve: "):
        answers(solver(front.url), group("1..."), group("2..."))
    assert len(front.keys) == 1


def test_a_model_that_was_there_may_come_back() -> None:
    with scripted_front(None, Scripted(404, "model_not_found", "model")) as front:
        assert len(answers(solver(front.url), group("1..."), group("2..."))) == 2
    assert len(front.keys) == 3


def test_a_front_that_is_away_for_too_long_ends_the_run() -> None:
    notes: list[str] = []
    with pytest.raises(ToolError, match=r"no answer \(.*refused.*\)\. Given up\."):
        answers(solver(NOBODY, notes, patience_s=1.0), group("1..."))
    assert notes


def test_several_groups_at_a_time() -> None:
    groups = [[PuzzleRecord(number, f"{number:04}")] for number in range(20)]
    with scripted_front() as front:
        solving = solver(front.url, concurrency=4).solve_all(iter(groups))
        found = {records[0].id: answer["grid"] for records, (answer,) in solving}
    assert found == {number: f"{number:04}" for number in range(20)}
    assert len(front.keys) == 20


def test_a_mistake_in_reading_is_raised() -> None:
    def groups() -> Iterator[Group]:
        yield group("1...")
        raise ToolError("line 2")

    with scripted_front() as front, pytest.raises(ToolError, match="line 2"):
        answers(solver(front.url), *groups())
    with scripted_front() as front, pytest.raises(ToolError, match="line 2"):
        list(solver(front.url, concurrency=2).solve_all(groups()))
