"""A fleet as lines of text. Pure: what is shown depends on what is given alone; no line is wider
than asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import assert_never

from scripts.watch.fronts import Latencies
from scripts.watch.rates import Rates
from scripts.watch.table import Column, shorten, table
from scripts.watch.units import age, amount, memory, span
from shared.fleet.snapshot import Model, Server, Snapshot, Worker, WorkerModel
from shared.model_load import NUMBERS, Style

_LEAST_NAME = 12
_HOW_TO = "latencies: name fronts that can be asked for them, --front http://HOST:8000"
_TIMES = {"ttft": "TTFT", "inter_token": "TOKEN", "queue": "QUEUE", "job": "JOB"}


@dataclass(frozen=True)
class Requests:
    """What fronts tell. `rates` are of requests, errors and rejections a second; None before the
    second look."""

    num_told: int
    problems: Mapping[str, str]
    rates: Mapping[str, float] | None
    latencies: Sequence[Latencies]


@dataclass(frozen=True)
class View:
    """A snapshot, and what is known besides: `rates` of the last `window_s`; `requests` is None
    where no front was named."""

    now: Snapshot
    rates: Rates | None = None
    window_s: float = 0.0
    requests: Requests | None = None
    hints: Sequence[str] = field(default=(_HOW_TO,))


def screen(view: View, width: int) -> list[str]:
    """All there is to see, in paragraphs."""
    now = view.now
    paragraphs = [_head(view)]
    if now.status == "redis_away":
        paragraphs.append(wrap(now.problem or "", width))
    else:
        paragraphs += [
            _models(now.models, width),
            _queues(now.models, width),
            _workers(now.workers, width),
        ]
    if view.requests is not None:
        paragraphs.append(_requests(view.requests, width))
    elif view.hints:
        paragraphs.append(list(view.hints))
    lines = [line for paragraph in paragraphs if paragraph for line in (*paragraph, "")][:-1]
    return [shorten(line, width) for line in lines]


def _head(view: View) -> list[str]:
    now = view.now
    told_at = now.at.removesuffix("+00:00") + "Z"
    if now.status == "redis_away":
        return [f"aios  REDIS IS AWAY  {told_at}"]
    num_ready = sum(worker.state == "ready" for worker in now.workers)
    parts = [
        f"aios  {'ready' if now.status == 'ready' else 'NOT READY'}",
        f"{num_ready} of {len(now.workers)} workers ready",
        f"{sum(model.workers > 0 for model in now.models)} of {len(now.models)} models served",
        f"{now.dead_jobs} dead jobs",
    ]
    return ["  ".join(parts), f"{_work(view)}  {told_at}", *map(_server, now.redis)]


def _work(view: View) -> str:
    if view.rates is None:
        return f"{amount(sum(model.tokens_per_s for model in view.now.models))} tokens/s"
    told = {"tokens": view.rates.tokens, "jobs": view.rates.jobs, "errors": view.rates.errors}
    return "  ".join(
        [
            *(f"{amount(rate)} {name}/s" for name, rate in told.items()),
            f"over {span(view.window_s)}",
        ]
    )


def _server(server: Server) -> str:
    limit = memory(server.max_memory_bytes) if server.max_memory_bytes else "no limit"
    parts = [
        f"redis {server.version} :{server.port}",
        f"{memory(server.memory_bytes)} of {limit}",
        f"{server.clients} clients",
        f"{amount(server.ops_per_s)} ops/s",
        f"aof {'on' if server.is_append_only else 'OFF'}",
        f"up {span(server.uptime_s)}",
    ]
    return "  ".join(parts)


def _models(models: Sequence[Model], width: int) -> list[str]:
    if not models:
        return ["no model has been announced"]
    names = [model.id + (" *" if model.is_default else "") for model in models]
    columns = [
        Column("MODEL", names, is_name=True, least=_LEAST_NAME),
        Column("WORKERS", [str(model.workers) for model in models]),
        Column("RUNNING", [str(model.running) for model in models]),
        Column("WAITING", [str(model.waiting) for model in models]),
        Column("TOK/S", [amount(model.tokens_per_s) for model in models], rank=6),
        Column("WORK/S", [amount(model.work_per_s) for model in models], rank=4),
        Column("BYTES", [memory(model.queue_bytes) for model in models], rank=1),
        Column("RUNNER", [model.runner for model in models], rank=5, is_name=True),
        Column("DEVICE", [model.device for model in models], rank=2, is_name=True),
        Column("DTYPE", [model.dtype for model in models], rank=3, is_name=True),
    ]
    return table(columns, width)


def _queues(models: Sequence[Model], width: int) -> list[str]:
    rows = [
        (model.id, name, line)
        for model in models
        for name, line in model.classes.items()
        if line.waiting
    ]
    if not rows:
        return ["nothing waits"] if models else []
    columns = [
        Column("QUEUE", [model for model, _, _ in rows], is_name=True, least=_LEAST_NAME),
        Column("CLASS", [name for _, name, _ in rows], is_name=True),
        Column("WAITING", [str(line.waiting) for _, _, line in rows]),
        Column("OLDEST", [age(line.oldest_s) for _, _, line in rows]),
        Column("WORK", [age(line.work_s) for _, _, line in rows]),
    ]
    return table(columns, width)


def _workers(workers: Sequence[Worker], width: int) -> list[str]:
    """A row for each model of a worker; what is the worker's own is told in its first."""
    if not workers:
        return ["no worker is alive"]
    rows: list[tuple[Worker | None, WorkerModel | None]] = []
    for worker in workers:
        rows += [
            (worker if place == 0 else None, model)
            for place, model in enumerate(worker.models or (None,))
        ]
    owners, loads = [owner for owner, _ in rows], [load for _, load in rows]
    columns = [
        Column(
            "WORKER", [own.id if own else "" for own in owners], is_name=True, least=_LEAST_NAME
        ),
        Column("STATE", [own.state if own else "" for own in owners], is_name=True),
        Column("POOL", [own.pool if own else "" for own in owners], rank=4, is_name=True),
        Column(
            "MODEL", [load.id if load else "-" for load in loads], rank=10, is_name=True, least=8
        ),
        *_numbers(loads),
        Column("MEM", [memory(own.memory_bytes) if own else "" for own in owners], rank=7),
        Column(
            "GPU",
            [memory(own.device_bytes) if own and own.device_bytes else "" for own in owners],
            rank=2,
        ),
        Column("UP", [span(own.uptime_s) if own else "" for own in owners], rank=5),
    ]
    return [*table(columns, width), *_failures(workers, width)]


def _failures(workers: Sequence[Worker], width: int) -> list[str]:
    """The models that workers could not load again, and why."""
    lines: list[str] = []
    for worker in workers:
        for model, reason in worker.failures.items():
            lines += wrap(f"{worker.id}: {model} failed: {reason}", width)
    return lines


def _numbers(loads: Sequence[WorkerModel | None]) -> list[Column]:
    """Return the columns of `shared/model_load.py`; a worker without models has no numbers.

    A share of which no worker has anything to tell is left out.
    """
    columns = []
    for name, number in NUMBERS.items():
        column = number.column
        if column is None:
            continue
        cells = []
        for load in loads:
            cells.append("" if load is None else _cell(load, name, column.style, column.whole))
        tells_nothing = column.style == "share" and all(cell in ("", "-") for cell in cells)
        if not tells_nothing:
            columns.append(Column(column.title, cells, rank=column.rank))
    return columns


def _cell(load: WorkerModel, name: str, style: Style, whole_name: str) -> str:
    value = getattr(load, name)
    match style:
        case "count":
            return str(value)
        case "amount":
            return amount(value)
        case "age":
            return age(value)
        case "of" | "share":
            whole = getattr(load, whole_name)
            if not whole:
                return "-"
            return f"{value}/{whole}" if style == "of" else f"{100 * value / whole:.0f}%"
        case _:
            assert_never(style)


def _requests(told: Requests, width: int) -> list[str]:
    head = f"{told.num_told} of {told.num_told + len(told.problems)} fronts answer"
    lines = [
        "  ".join(
            [head, *(f"{amount(rate)} {name}/s" for name, rate in (told.rates or {}).items())]
        )
    ]
    lines += [f"{url}: {problem}" for url, problem in told.problems.items()]
    if not told.latencies:
        return lines
    columns = [
        Column("LATENCY", [item.model for item in told.latencies], is_name=True, least=_LEAST_NAME)
    ]
    for rank, (name, title) in enumerate(reversed(_TIMES.items()), 1):
        pairs = [item.quantiles.get(name) for item in told.latencies]
        columns[1:1] = [
            Column(
                f"{title} p50", [age(pair[0]) if pair else "-" for pair in pairs], rank=2 * rank
            ),
            Column("p95", [age(pair[1]) if pair else "-" for pair in pairs], rank=2 * rank),
        ]
    columns.append(Column("OF", ["now" if item.is_recent else "all" for item in told.latencies]))
    return [*lines, *table(columns, width)]
