"""The view of a fleet as lines of text of a limited width.

The functions are pure: they neither read nor print.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import assert_never

from scripts.cli.watch.fronts import Latencies
from scripts.cli.watch.rates import Rates
from scripts.cli.watch.table import Column, Heading, columns_of, shorten, table
from scripts.cli.watch.units import age, amount, memory, span
from shared.fleet.snapshot import Model, Server, Snapshot, Worker, WorkerModel
from shared.telemetry.model_load import NUMBERS, Style

_LEAST_NAME = 12
_FRONT_HINT = "latencies: name fronts that can be asked for them, --front http://HOST:8000"
_TIMES = {"ttft": "TTFT", "inter_token": "TOKEN", "queue": "QUEUE", "job": "JOB"}


@dataclass(frozen=True)
class Requests:
    """The numbers of the fronts: how many answer, and the problems of the others by URL.

    `rates` are requests, errors and rejections a second; None before the second scrape.
    """

    num_answering: int
    problems: Mapping[str, str]
    rates: Mapping[str, float] | None
    latencies: Sequence[Latencies]


@dataclass(frozen=True)
class View:
    """A snapshot of the fleet, with the rates before it and the numbers of its fronts.

    `rates` are those of the last `window_s` seconds. `requests` is None if no front was named;
    then `hints` are shown in their place.
    """

    now: Snapshot
    rates: Rates | None = None
    window_s: float = 0.0
    requests: Requests | None = None
    hints: Sequence[str] = field(default=(_FRONT_HINT,))


def screen(view: View, width: int) -> list[str]:
    """Return the lines of a view, none longer than `width`, in paragraphs."""
    now = view.now
    paragraphs = [_head(view)]
    if now.status == "redis_away":
        paragraphs.append(wrap(now.problem or "", width))
    else:
        paragraphs.append(_models(now.models, width))
        paragraphs.append(_queues(now.models, width))
        paragraphs.append(_workers(now.workers, width))
    if view.requests is not None:
        paragraphs.append(_requests(view.requests, width))
    elif view.hints:
        paragraphs.append(list(view.hints))
    lines: list[str] = []
    for paragraph in paragraphs:
        if lines and paragraph:
            lines.append("")
        lines += paragraph
    return [shorten(line, width) for line in lines]


def _head(view: View) -> list[str]:
    """Return the first paragraph: the state of the fleet, its work, and its Redis servers."""
    now = view.now
    read_at = now.at.removesuffix("+00:00") + "Z"
    if now.status == "redis_away":
        return [f"aios  REDIS IS AWAY  {read_at}"]
    num_ready = 0
    for worker in now.workers:
        if worker.state == "ready":
            num_ready += 1
    num_served = 0
    for model in now.models:
        if model.workers > 0:
            num_served += 1
    state = "ready" if now.status == "ready" else "NOT READY"
    parts = [
        f"aios  {state}",
        f"{num_ready} of {len(now.workers)} workers ready",
        f"{num_served} of {len(now.models)} models served",
        f"{now.dead_jobs} dead jobs",
    ]
    lines = ["  ".join(parts), f"{_work(view)}  {read_at}"]
    for server in now.redis:
        lines.append(_server(server))
    return lines


def _work(view: View) -> str:
    """Return the rates of the workers; before a second snapshot, those that they report."""
    if view.rates is None:
        return f"{amount(sum(model.tokens_per_s for model in view.now.models))} tokens/s"
    rates = view.rates
    parts = [
        f"{amount(rates.tokens)} tokens/s",
        f"{amount(rates.jobs)} jobs/s",
        f"{amount(rates.errors)} errors/s",
        f"over {span(view.window_s)}",
    ]
    return "  ".join(parts)


def _server(server: Server) -> str:
    """Return the line of a Redis server."""
    limit = "no limit"
    if server.max_memory_bytes:
        limit = memory(server.max_memory_bytes)
    parts = [
        f"redis {server.version} :{server.port}",
        f"{memory(server.memory_bytes)} of {limit}",
        f"{server.clients} clients",
        f"{amount(server.ops_per_s)} ops/s",
        f"aof {'on' if server.is_append_only else 'OFF'}",
        f"up {span(server.uptime_s)}",
    ]
    return "  ".join(parts)


_MODELS = (
    Heading("MODEL", is_name=True, least=_LEAST_NAME),
    Heading("WORKERS"),
    Heading("RUNNING"),
    Heading("WAITING"),
    Heading("TOK/S", rank=6),
    Heading("WORK/S", rank=4),
    Heading("BYTES", rank=1),
    Heading("RUNNER", rank=5, is_name=True),
    Heading("DEVICE", rank=2, is_name=True),
    Heading("DTYPE", rank=3, is_name=True),
)


def _models(models: Sequence[Model], width: int) -> list[str]:
    """Return a table with a row for each model; the default model has a star."""
    if not models:
        return ["no model has been announced"]
    rows = []
    for model in models:
        row = (
            model.id + (" *" if model.is_default else ""),
            str(model.workers),
            str(model.running),
            str(model.waiting),
            amount(model.tokens_per_s),
            amount(model.work_per_s),
            memory(model.queue_bytes),
            model.runner,
            model.device,
            model.dtype,
        )
        rows.append(row)
    return table(columns_of(_MODELS, rows), width)


_QUEUES = (
    Heading("QUEUE", is_name=True, least=_LEAST_NAME),
    Heading("CLASS", is_name=True),
    Heading("WAITING"),
    Heading("OLDEST"),
    Heading("WORK"),
)


def _queues(models: Sequence[Model], width: int) -> list[str]:
    """Return a table with a row for each model and class that has waiting jobs."""
    rows = []
    for model in models:
        for name, queue in model.classes.items():
            if queue.waiting:
                row = (model.id, name, str(queue.waiting), age(queue.oldest_s), age(queue.work_s))
                rows.append(row)
    if rows:
        return table(columns_of(_QUEUES, rows), width)
    return ["nothing waits"] if models else []


_WORKERS = (
    Heading("WORKER", is_name=True, least=_LEAST_NAME),
    Heading("STATE", is_name=True),
    Heading("POOL", rank=4, is_name=True),
    Heading("MODEL", rank=10, is_name=True, least=8),
)
_MACHINES = (
    Heading("MEM", rank=7),
    Heading("GPU", rank=2),
    Heading("UP", rank=5),
)


def _workers(workers: Sequence[Worker], width: int) -> list[str]:
    """Return a table with a row for each model of a worker.

    The cells on the worker itself are filled in its first row only. Below the table are the models
    that workers could not load.
    """
    if not workers:
        return ["no worker is alive"]
    names: list[tuple[str, ...]] = []
    loads: list[WorkerModel | None] = []
    machines: list[tuple[str, ...]] = []
    for worker in workers:
        models: Sequence[WorkerModel | None] = worker.models or (None,)
        for index, load in enumerate(models):
            name = load.id if load else "-"
            loads.append(load)
            if index > 0:
                names.append(("", "", "", name))
                machines.append(("", "", ""))
                continue
            device = memory(worker.device_bytes) if worker.device_bytes else ""
            names.append((worker.id, worker.state, worker.pool, name))
            machines.append((memory(worker.memory_bytes), device, span(worker.uptime_s)))
    columns = columns_of(_WORKERS, names) + _numbers(loads) + columns_of(_MACHINES, machines)
    return [*table(columns, width), *_failures(workers, width)]


def _failures(workers: Sequence[Worker], width: int) -> list[str]:
    """Return the models that workers could not load, and why."""
    lines: list[str] = []
    for worker in workers:
        for model, reason in worker.failures.items():
            lines += wrap(f"{worker.id}: {model} failed: {reason}", width)
    return lines


def _numbers(loads: Sequence[WorkerModel | None]) -> list[Column]:
    """Return the columns of the numbers in `shared/telemetry/model_load.py`.

    The cells of a worker without models, whose load is None, are empty. A column of shares is left
    out if no model has a value for it.
    """
    columns = []
    for name, number in NUMBERS.items():
        column = number.column
        if column is None:
            continue
        cells = []
        for load in loads:
            cells.append("" if load is None else _cell(load, name, column.style, column.whole))
        has_values = any(cell not in ("", "-") for cell in cells)
        if has_values or column.style != "share":
            columns.append(Column(Heading(column.title, rank=column.rank), cells))
    return columns


def _cell(load: WorkerModel, name: str, style: Style, whole_name: str) -> str:
    """Return a number of a model in its style; `whole_name` is the field that a share is of."""
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
            if style == "of":
                return f"{value}/{whole}"
            return f"{100 * value / whole:.0f}%"
        case _:
            assert_never(style)


def _requests(requests: Requests, width: int) -> list[str]:
    """Return the rates and problems of the fronts, and below them a table of latencies."""
    num_fronts = requests.num_answering + len(requests.problems)
    parts = [f"{requests.num_answering} of {num_fronts} fronts answer"]
    for name, rate in (requests.rates or {}).items():
        parts.append(f"{amount(rate)} {name}/s")
    lines = ["  ".join(parts)]
    lines += [f"{url}: {problem}" for url, problem in requests.problems.items()]
    if requests.latencies:
        lines += _latencies(requests.latencies, width)
    return lines


def _latencies(latencies: Sequence[Latencies], width: int) -> list[str]:
    """Return a table with a row for each model, and two columns for each of its times."""
    models = [row.model for row in latencies]
    columns = [Column(Heading("LATENCY", is_name=True, least=_LEAST_NAME), models)]
    rank = 2 * len(_TIMES)
    for name, title in _TIMES.items():
        medians = []
        tails = []
        for row in latencies:
            median_s, tail_s = row.quantiles.get(name, (None, None))
            medians.append("-" if median_s is None else age(median_s))
            tails.append("-" if tail_s is None else age(tail_s))
        columns.append(Column(Heading(f"{title} p50", rank=rank), medians))
        columns.append(Column(Heading("p95", rank=rank), tails))
        # Of a narrow table the last of `_TIMES` is left out first.
        rank -= 2
    scopes = ["now" if row.is_recent else "all" for row in latencies]
    columns.append(Column(Heading("OF"), scopes))
    return table(columns, width)
