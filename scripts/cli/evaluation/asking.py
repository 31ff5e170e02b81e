"""Asks a fleet the items of sets over HTTP, as any client would, and times the answers."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from api.evaluation.report import (
    Answer,
    Assignment,
    ItemResult,
    ModelFacts,
    Report,
    Skipped,
    TaskReport,
    assignments_of,
    now,
    result_of,
    task_report,
)
from api.evaluation.sets import EvalSet, Item
from scripts.cli.fleet_tool import ToolError
from scripts.cli.runs.progress import counting

_SHOWN = 300
_BUSY = (429, 503)
_MOST_TRIES = 5
_MOST_PAUSE_S = 10.0

Note = Callable[[str], None]
"""Takes a line for people about how far an evaluation has come."""


class FleetClient:
    """A fleet behind its front. `client` has its URL and, where one is needed, a key."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def models(self) -> list[ModelFacts]:
        """Return the models that are served. Raise ToolError where the front does not tell."""
        try:
            answer = await self._client.get("/api/models/status")
            metrics = await self._client.get("/metrics")
        except httpx.HTTPError as error:
            reason = str(error) or repr(error)
            raise ToolError(
                f"{self._client.base_url}: no answer ({reason}); start the fleet, or name another "
                "by --url"
            ) from error
        if answer.status_code != 200:
            raise ToolError(f"{answer.url}: {answer.status_code}: {answer.text[:_SHOWN]}")
        load_ms: dict[str, float] = {}
        memory_bytes = 0
        # Metrics may be protected: then load times and memory are not known.
        if metrics.status_code == 200:
            load_ms, memory_bytes = _measured(metrics.text)
        models = []
        for status in answer.json()["models"]:
            if status["workers"] == 0 or status["status"] == "failed":
                continue
            model = ModelFacts(
                id=status["model_id"],
                runner=status["runner"],
                device=status["acceleration"]["device"],
                dtype=status["acceleration"]["dtype"],
                tasks=tuple(status["tasks"]),
                load_ms=load_ms.get(status["model_id"]),
                memory_bytes=memory_bytes or None,
            )
            models.append(model)
        return models

    async def ask(self, one: EvalSet, item: Item, model: str) -> Answer:
        """Return the answer to an item. While the fleet is busy, ask again as often as is decent."""
        body = one.body_of(item, model)
        if one.is_streamed:
            body["stream"] = True
        answer = Answer(error="never asked")
        for _ in range(_MOST_TRIES):
            try:
                pause_s, answer = await self._ask(one, body)
            except httpx.HTTPError as error:
                return Answer(error=repr(error))
            if pause_s is None:
                return answer
            await asyncio.sleep(min(pause_s, _MOST_PAUSE_S))
        return answer

    async def _ask(self, one: EvalSet, body: dict[str, Any]) -> tuple[float | None, Answer]:
        """Return the answer to a request, and the pause before the next try if it was refused."""
        begun_s = time.perf_counter()
        async with self._client.stream("POST", one.path, json=body) as response:
            if response.status_code != 200:
                message = _message(await response.aread())
                is_busy = response.status_code in _BUSY
                pause_s = float(response.headers.get("Retry-After", "1")) if is_busy else None
                return pause_s, Answer(
                    error=f"{response.status_code}: {message}",
                    is_refused=400 <= response.status_code < 500 and not is_busy,
                )
            answer = Answer()
            if one.is_streamed:
                answer = await _streamed(response, begun_s)
            else:
                await response.aread()
                answer = Answer(response.json())
        latency_ms = 1000 * (time.perf_counter() - begun_s)
        tokens = 0
        if isinstance(answer.body, dict):
            tokens = answer.body.get("usage", {}).get("completion_tokens", 0)
        return None, replace(answer, latency_ms=latency_ms, tokens=tokens)


async def _streamed(response: httpx.Response, begun_s: float) -> Answer:
    """Return the answer in the last event of a stream, and the time of the first token."""
    first_ms = None
    event = ""
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            event = value
        if name != "data":
            continue
        if event == "token" and first_ms is None:
            first_ms = 1000 * (time.perf_counter() - begun_s)
        elif event == "done":
            return Answer(json.loads(value), first_token_ms=first_ms)
        elif event == "error":
            return Answer(error=_message(value.encode()))
    return Answer(error="the stream ended early")


def _message(content: bytes) -> str:
    """Return the message of an error's body, or its beginning where it is of another form."""
    text = content.decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        text = str(error["message"])
    except (ValueError, KeyError, TypeError):
        pass
    return text[:_SHOWN]


def _measured(text: str) -> tuple[dict[str, float], int]:
    """Return the load time of each model in ms, and the memory of all workers in bytes."""
    load_ms = {}
    memory_bytes = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "aios_model_load_seconds":
                load_ms[sample.labels["model"]] = round(1000 * sample.value, 1)
            elif sample.name == "aios_workers_memory_bytes":
                memory_bytes += sample.value
    return load_ms, int(memory_bytes)


async def evaluate(
    fleet: FleetClient,
    sets: Sequence[EvalSet],
    *,
    id: str,
    model: str | None,
    concurrency: int,
    note: Note,
) -> Report:
    """Ask the sets of one model, or of all that can do them, and return the report.

    One set follows the other, and `concurrency` items are under way at a time. Before each, its
    first item is asked once without being timed.
    """
    by_task = {one.task: one for one in sets}
    assignments, skipped = assignments_of(sets, await fleet.models(), model)
    results = []
    for assignment in assignments:
        one = by_task[assignment.task]
        first = await fleet.ask(one, one.items[0], assignment.model.id)
        if first.is_refused:
            reason = f"refused: {first.error}"
            skipped.append(Skipped(one.task, assignment.model.id, reason))
            continue
        items = await _ask_all(fleet, one, assignment, concurrency)
        results.append(task_report(one, assignment.model, items))
        note(f"{one.task}: {assignment.model.id} has answered {len(items)} items")
    results = _with_fresh_facts(results, await fleet.models())
    return Report(
        id=id,
        made_at=now(),
        way="http",
        results=tuple(results),
        skipped=tuple(skipped),
        concurrency=concurrency,
    )


async def _ask_all(
    fleet: FleetClient, one: EvalSet, assignment: Assignment, concurrency: int
) -> list[ItemResult]:
    places = asyncio.Semaphore(concurrency)
    with counting(f"{one.task} by {assignment.model.id}", len(one.items)) as done:

        async def ask_in_turn(item: Item) -> ItemResult:
            async with places:
                answer = await fleet.ask(one, item, assignment.model.id)
            done()
            return result_of(one, item, answer)

        return await asyncio.gather(*(ask_in_turn(item) for item in one.items))


def _with_fresh_facts(
    results: Sequence[TaskReport], models: Sequence[ModelFacts]
) -> list[TaskReport]:
    """Return the results with what is known of the models now that all of them were loaded."""
    by_id = {model.id: model for model in models}
    fresh = []
    for result in results:
        model = by_id.get(result.model.id, result.model)
        fresh.append(replace(result, model=model))
    return fresh
