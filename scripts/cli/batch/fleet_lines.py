"""Lines that a server answers, each a POST, whatever happens to the server meanwhile.

A line has an idempotency key, which is the same in every run that goes on. So a line that a fleet
got before is followed, and not computed again: after Ctrl-C, or when the connection or the front
was lost. Other servers of OpenAI's endpoints ignore the key.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from api.batches.line_answers import completed_answer, failed_answer
from api.batches.lines import BatchLine
from api.schemas.files import made_file
from scripts.cli.batch.input_file import with_model
from scripts.cli.batch.new_files import NewFiles
from scripts.cli.fleet_tool import ToolError
from scripts.cli.runs.replies import SPENT, WAIT_S, pause_s
from shared.queue.batches import LineAnswer, LineTokens

_TIMEOUT_S = WAIT_S + 40.0
"""A front that says nothing for so long is lost."""
_MOST_FAILURES = 3
"""So often a line is tried that the server fails to do."""
_SHOWN = 500


@dataclass(frozen=True)
class _Reply:
    """A reply. Its status is 0 if none came, and `message` says why.

    `body` is that of an answer, or a document that tells of an error.
    """

    status: int
    body: bytes = b""
    request_id: str = ""
    message: str = ""
    code: str = ""
    retry_after: str = ""
    media_type: str = ""

    @property
    def is_json(self) -> bool:
        return self.media_type.startswith("application/json")

    @property
    def is_unavailable(self) -> bool:
        """Return whether the same request may be answered later."""
        return self.status in (0, 408, 425, 429) or self.status > 500


class FleetLines:
    """Lines that the server at `url` answers, up to `most_at_once` at a time.

    Lines that name no model go to `model`, or to the server's own choice. Answers that are bytes
    become `new_files`; None is for lines that have no such answers.
    `note` is called with lines for people. A server that takes no line for `patience_s` ends the
    run.
    """

    def __init__(
        self,
        url: str,
        run_id: str,
        new_files: NewFiles | None,
        *,
        model: str | None,
        most_at_once: int,
        patience_s: float,
        note: Callable[[str], None],
        api_key: str | None = None,
    ) -> None:
        self.most_at_once = most_at_once
        # Paths of lines begin with the /v1 that base URLs of OpenAI's clients end with.
        self._url = url.rstrip("/").removesuffix("/v1")
        self._run_id = run_id
        self._new_files = new_files
        self._model = model
        self._patience_s = patience_s
        self._note = note
        self._taken_s = time.monotonic()
        headers = {
            "Content-Type": "application/json",
            "Prefer": f"wait={WAIT_S}",
            "X-On-Disconnect": "continue",
            "X-Priority": "bulk",
        }
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        limits = httpx.Limits(max_connections=most_at_once, max_keepalive_connections=most_at_once)
        self._client = httpx.AsyncClient(
            headers=headers, limits=limits, timeout=httpx.Timeout(_TIMEOUT_S, pool=None)
        )

    async def answer(self, line: BatchLine) -> LineAnswer:
        """Return the answer of a line. Raise ToolError if the server refuses all or stays away."""
        line = with_model(line, self._model)
        attempt = 0
        num_pauses = 0
        while True:
            reply = await self._post(line, attempt)
            if reply.status in (200, 202):
                self._taken_s = time.monotonic()
            if reply.status == 202:
                num_pauses = 0
                continue
            if reply.status == 200:
                return await self._completed(line, reply)
            if reply.status == 401:
                raise ToolError(f"{self._url}: {reply.message}")

            if reply.code in SPENT or reply.status == 500:
                # Under its old key the work would only be told of again.
                attempt += 1
                if attempt == _MOST_FAILURES:
                    return self._failed(line, reply)
            elif not reply.is_unavailable:
                return self._failed(line, reply)
            if time.monotonic() - self._taken_s > self._patience_s:
                raise ToolError(f"{self._url}: {reply.message} Given up.")
            self._note(f"{self._url}: {reply.message} Trying again.")
            await asyncio.sleep(pause_s(reply.retry_after, num_pauses))
            num_pauses += 1

    async def close(self) -> None:
        await self._client.aclose()

    async def _post(self, line: BatchLine, attempt: int) -> _Reply:
        headers = {"Idempotency-Key": self._key(line, attempt)}
        try:
            response = await self._client.post(
                self._url + line.url, content=line.body, headers=headers
            )
        except httpx.HTTPError as error:
            return _Reply(0, message=f"no answer ({str(error) or type(error).__name__}).")
        return _reply_of(response)

    def _key(self, line: BatchLine, attempt: int) -> str:
        """Return the idempotency key of a line. Each attempt to compute it has its own."""
        digest = hashlib.sha256(line.custom_id.encode() + b"\n" + line.body).hexdigest()
        return f"batch-{self._run_id}-{digest[:32]}-{attempt}"

    async def _completed(self, line: BatchLine, reply: _Reply) -> LineAnswer:
        body = reply.body
        if reply.media_type.startswith("text/"):
            body = json.dumps(body.decode(errors="replace")).encode()
        elif not reply.is_json and self._new_files is not None:
            ref = await self._new_files.write(body, reply.media_type)
            body = made_file(ref).model_dump_json().encode()
        return completed_answer(
            self._run_id,
            line.number,
            line.custom_id,
            request_id=reply.request_id,
            body=body,
            tokens=LineTokens(),
        )

    def _failed(self, line: BatchLine, reply: _Reply) -> LineAnswer:
        try:
            body = json.loads(reply.body)
        except ValueError:
            body = reply.body[:_SHOWN].decode(errors="replace")
        return failed_answer(
            self._run_id,
            line.number,
            line.custom_id,
            request_id=reply.request_id,
            status=reply.status,
            body=body,
            error={"code": reply.code or "error", "message": reply.message},
        )


def _reply_of(response: httpx.Response) -> _Reply:
    try:
        document: Any = response.json()
    except ValueError:
        document = None
    error = _error_of(document)
    return _Reply(
        response.status_code,
        response.content,
        response.headers.get("x-request-id", ""),
        message=str(error.get("message") or f"answers {response.status_code}."),
        code=str(error.get("code") or ""),
        retry_after=response.headers.get("retry-after", ""),
        media_type=response.headers.get("content-type", ""),
    )


def _error_of(document: Any) -> Mapping[str, Any]:
    """Return the error in a body, in whatever dialect; an empty one if there is none."""
    if not isinstance(document, dict):
        return {}
    error = document.get("error", document)
    if isinstance(error, str):
        return {"message": error, "code": document.get("error_type")}
    return error if isinstance(error, dict) else {}
