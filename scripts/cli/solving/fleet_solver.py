"""Solves groups of puzzles by a fleet, and gets the answer of each whatever happens to it.

Each group is a request to `/v1/puzzles/solve` with an idempotency key, which is the same in every
run that goes on. So a group that was sent before is followed, and not computed again: after Ctrl-C,
or when the connection or the front was lost.
"""

import hashlib
import json
import queue
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import Any, Literal

from scripts.cli.fleet_tool import ToolError
from scripts.cli.runs.replies import SPENT, WAIT_S, pause_s
from scripts.cli.solving.groups import PUZZLE_FIELDS, Answer, Group, Refused, Solved, answers_of

_PATH = "/v1/puzzles/solve"
_TIMEOUT_S = WAIT_S + 40.0
"""A front that says nothing for so long is lost."""
_MOST_FAILURES = 3
"""So often a puzzle is tried that the server fails to solve."""

_FAILED = ("out_of_memory", "deadline_exceeded")
"""Codes of work that may be too much in one request, beside those with the status 500."""

Fate = Literal[
    "solved", "running", "unavailable", "lost", "failed", "refused", "too_large", "hopeless"
]


@dataclass(frozen=True)
class Reply:
    """The reply of a front. Its status is 0 if none came, and `message` says why."""

    status: int
    message: str = ""
    code: str = ""
    field: str = ""
    retry_after: str = ""
    solutions: tuple[Answer, ...] = ()

    @property
    def fate(self) -> Fate:
        """The fate of the group that was sent."""
        if self.status == 200:
            return "solved"
        if self.status == 202:
            return "running"
        if self.code in SPENT:
            return "lost"
        if self.code in _FAILED or self.status == 500:
            return "failed"
        if self.status in (0, 429) or self.status > 500:
            return "unavailable"
        if self.status == 400 and self.field in PUZZLE_FIELDS:
            return "refused"
        # A limit of the fleet or of the key that the request exceeds by itself has no field.
        if self.status == 413 or (self.status == 400 and not self.field):
            return "too_large"
        return "hopeless"


class FleetSolver:
    """Solves groups by the front at `url`, `concurrency` of them at a time.

    `fields` are those of all requests. `note` is called with lines for people. A front that does
    not take a group for `patience_s` ends the run.
    """

    def __init__(
        self,
        url: str,
        run_id: str,
        *,
        fields: Mapping[str, Any],
        concurrency: int,
        patience_s: float,
        note: Callable[[str], None],
        api_key: str | None = None,
    ) -> None:
        self._url = url.rstrip("/") + _PATH
        self._run_id = run_id
        self._fields = fields
        self._concurrency = concurrency
        self._patience_s = patience_s
        self._note = note
        self._headers = {
            "Content-Type": "application/json",
            "Prefer": f"wait={WAIT_S}",
            "X-On-Disconnect": "continue",
            "X-Priority": "bulk",
        }
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._opener = urllib.request.build_opener(_AnyStatus)
        self._has_served = False
        self._stop = threading.Event()

    def solve_all(self, groups: Iterator[Group]) -> Iterator[Solved]:
        """Yield the groups as they are solved, in any order.

        Raise ToolError if the fleet refuses the whole run or is away for too long, and what reading
        the groups raises.
        """
        events: queue.SimpleQueue[Solved | str | BaseException | None] = queue.SimpleQueue()
        reading = threading.Lock()

        def work() -> None:
            try:
                while not self._stop.is_set():
                    with reading:
                        group = next(groups, None)
                    if group is None:
                        break
                    answers = answers_of(group, lambda part: self._solve(part, events.put))
                    events.put((group, answers))
            except BaseException as error:
                # It is raised where the solved groups are awaited.
                events.put(error)
            events.put(None)

        for _ in range(self._concurrency):
            # Daemons: Ctrl-C does not wait for the answers.
            threading.Thread(target=work, daemon=True).start()
        num_working = self._concurrency
        try:
            while num_working:
                match events.get():
                    case None:
                        num_working -= 1
                    case str(text):
                        self._note(text)
                    case BaseException() as error:
                        raise error
                    case solved:
                        yield solved
        finally:
            self._stop.set()

    def _solve(self, group: Group, note: Callable[[str], None]) -> list[Answer]:
        """Return the answers of a group.

        Raise Refused if a puzzle of it is at fault, and ToolError if the whole run cannot go on.
        """
        body = self._body(group)
        attempt = 0
        num_failures = 0
        num_pauses = 0
        taken_s = time.monotonic()
        while True:
            reply = self._post(body, self._key(group, attempt))
            if reply.fate == "solved":
                self._has_served = True
                return self._answers(reply, group)
            if reply.fate == "running":
                num_pauses = 0
                taken_s = time.monotonic()
                continue

            if reply.fate == "failed":
                num_failures += 1
            self._check(reply, len(group), num_failures)
            if reply.fate in ("failed", "lost"):
                # Under its old key the work would only be told of again.
                attempt += 1
            if time.monotonic() - taken_s > self._patience_s:
                raise ToolError(f"{self._url}: {reply.message} Given up.")
            note(f"{self._url}: {reply.message} Trying again.")
            self._pause(reply.retry_after, num_pauses)
            num_pauses += 1

    def _answers(self, reply: Reply, group: Group) -> list[Answer]:
        if len(reply.solutions) != len(group):
            raise ToolError(f"{self._url}: answers with something else than solutions")
        return list(reply.solutions)

    def _check(self, reply: Reply, num_puzzles: int, num_failures: int) -> None:
        """Return if the group may be asked for again.

        Raise Refused if it is to be divided or has an error for its answer, and ToolError if the
        run is to end.
        """
        may_divide = num_puzzles > 1
        match reply.fate:
            case "refused":
                raise Refused(reply.message)
            case "failed":
                if may_divide or num_failures == _MOST_FAILURES:
                    raise Refused(reply.message)
            case "lost":
                # A smaller group has less to wait for.
                if may_divide and reply.code == "queue_timeout":
                    raise Refused(reply.message)
            case "too_large":
                if may_divide:
                    raise Refused(reply.message)
                raise ToolError(f"{self._url}: {reply.message}")
            case "hopeless":
                # A fleet whose last worker for a model has died does not know it for a while.
                if reply.code != "model_not_found" or not self._has_served:
                    raise ToolError(f"{self._url}: {reply.message}")

    def _pause(self, retry_after: str, num_before: int) -> None:
        """Wait before the same is asked again. Raise ToolError if the run has ended meanwhile."""
        if self._stop.wait(pause_s(retry_after, num_before)):
            raise ToolError("The run has ended.")

    def _body(self, group: Group) -> bytes:
        """Return the body of a group's request, always the same bytes."""
        fields = dict(self._fields)
        if group[0].identifier is not None:
            fields["identifier"] = group[0].identifier
        fields["grids"] = [record.puzzle for record in group]
        return json.dumps(fields).encode()

    def _key(self, group: Group, attempt: int) -> str:
        """Return the idempotency key of a group. Each attempt to compute it has its own."""
        ids = json.dumps([record.id for record in group])
        digest = hashlib.sha256(ids.encode()).hexdigest()
        return f"puzzles-{self._run_id}-{digest[:32]}-{attempt}"

    def _post(self, body: bytes, key: str) -> Reply:
        headers = {**self._headers, "Idempotency-Key": key}
        request = urllib.request.Request(self._url, body, headers)
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as response:
                return _reply(response.status, response.headers, response.read())
        except (OSError, HTTPException) as error:
            # A URLError holds what happened in `reason`, and some errors have no text at all.
            reason = getattr(error, "reason", None) or error
            return Reply(0, f"no answer ({str(reason) or type(error).__name__}).")


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Returns responses with any status, in place of an exception for most of them."""

    def http_response(self, request: urllib.request.Request, response: HTTPResponse) -> Any:
        return response

    https_response = http_response


def _reply(status: int, headers: HTTPMessage, body: bytes) -> Reply:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        # A proxy, or a server of something else.
        return Reply(0 if status == 200 else status, f"answers {status} and no JSON.")
    if status == 200:
        return Reply(status, solutions=tuple(document.get("solutions", ())))

    error = document.get("error")
    if not isinstance(error, dict):
        return Reply(status, f"answers {status}.")
    return Reply(
        status,
        str(error.get("message") or f"answers {status}."),
        code=str(error.get("code") or ""),
        field=str(error.get("field") or ""),
        retry_after=headers.get("Retry-After", ""),
    )
