"""The screen of `aios status` and `aios top` is pinned letter by letter and fits any width."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from scripts.cli.watch.fronts import Latencies
from scripts.cli.watch.rates import Rates
from scripts.cli.watch.screen import Requests, View, screen
from scripts.cli.watch.table import Heading, columns_of, shorten, table
from scripts.cli.watch.units import age, amount, memory, span
from shared.fleet.snapshot import Model, Server, Snapshot, Waiting, Worker, WorkerModel

GOLDEN = Path(__file__).parent / "golden"
NOTHING = Waiting(0, 0.0, 0.0)


def load(name: str, **numbers: float) -> WorkerModel:
    """Return a worker's model whose other numbers are 0."""
    fields: dict[str, float] = dict.fromkeys(WorkerModel.__struct_fields__[1:], 0)
    fields["max_batch"] = 16
    return WorkerModel(id=name, **fields | numbers)  # type: ignore[arg-type]


def model(name: str, running: int, tokens_per_s: float, **classes: Waiting) -> Model:
    """Return a model of one worker, with 700 bytes for each waiting job."""
    lines = {"interactive": NOTHING, "default": NOTHING, "bulk": NOTHING} | classes
    waiting = sum(line.waiting for line in lines.values())
    return Model(
        id=name,
        runner="hrm_text",
        device="cuda",
        dtype="bfloat16",
        is_default=name == "hrm",
        workers=1,
        tokens_per_s=tokens_per_s,
        work_per_s=4321.0,
        running=running,
        waiting=waiting,
        queue_bytes=waiting * 700,
        classes=lines,
    )


BUSY = load(
    "hrm",
    running=14,
    waiting=3,
    kv_used=210,
    kv_pages=4096,
    tokens_per_s=812.4,
    step_s=0.0172,
    errors=2,
    takeovers=1,
    prefix_lookups=40,
    prefix_hits=10,
)
SERVER = Server(
    version="7.0.15",
    port=6379,
    uptime_s=300_000,
    memory_bytes=1_400_000,
    max_memory_bytes=4 << 30,
    clients=21,
    ops_per_s=12_345,
    is_append_only=True,
)
NOW = Snapshot(
    "2026-11-21T14:50:30+00:00",
    "ready",
    workers=(
        Worker(
            id="gpu-node-7.cluster.local-4711-63d9ef",
            state="ready",
            pool="h100",
            uptime_s=93_784.0,
            in_flight=17,
            memory_bytes=5 << 30,
            device_bytes=40 << 30,
            stale_appends=0,
            models=(BUSY, load("sapient/a-very-long-name-of-a-model")),
        ),
        Worker(
            id="vm-25310-738046",
            state="full",
            pool="default",
            uptime_s=65.0,
            in_flight=0,
            memory_bytes=48_771_072,
            device_bytes=0,
            stale_appends=0,
            models=(load("hrm", step_s=0.003),),
        ),
        Worker(
            id="vm-25311-000000",
            state="loading",
            pool="default",
            uptime_s=2.5,
            in_flight=0,
            memory_bytes=1 << 20,
            device_bytes=0,
            stale_appends=0,
            models=(),
        ),
    ),
    models=(
        model(
            "hrm",
            running=14,
            tokens_per_s=812.4,
            default=Waiting(3, 0.42, 1.9),
            bulk=Waiting(1250, 4000.0, 9000.0),
        ),
        model("sapient/a-very-long-name-of-a-model", running=0, tokens_per_s=0.0),
    ),
    dead_jobs=3,
    redis=(SERVER,),
)
REQUESTS = Requests(
    1,
    {"http://10.0.0.2:8000": "Connection refused"},
    {"requests": 12.25, "errors": 0.5, "rejections": 1200.0},
    (
        Latencies(
            "hrm",
            True,
            {"ttft": (0.081, 0.227), "inter_token": (0.0005, 0.00095), "job": (1.25, 75.0)},
        ),
        Latencies("sapient/a-very-long-name-of-a-model", False, {"job": (0.5, 1.0)}),
    ),
)
VIEW = View(NOW, Rates(1543.2, 12.0, 0.25), 10.2, REQUESTS)
AWAY = View(
    Snapshot("2026-11-21T14:50:30+00:00", "redis_away", "Error 111 connecting to " + "x" * 100)
)
EMPTY = View(Snapshot("2026-11-21T14:50:30+00:00", "not_ready"), hints=())


def test_tasks_tell_how_far_they_have_come() -> None:
    """A fleet without tasks has no column for their progress."""
    tasks = load("draw", running=2, steps_done=30, steps_total=40)
    drawing = msgspec.structs.replace(NOW.workers[0], models=(tasks,))
    now = msgspec.structs.replace(NOW, workers=(drawing,))

    lines = screen(replace(VIEW, now=now), 160)

    [title] = [line for line in lines if line.startswith("WORKER")]
    [row] = [line for line in lines if "draw" in line]
    column = title.index("DONE")
    assert row[column : column + 4] == " 75%"
    assert "DONE" not in "\n".join(screen(VIEW, 160))


@pytest.mark.parametrize("width", [80, 120])
def test_a_busy_fleet(width: int) -> None:
    text = "\n".join(screen(VIEW, width)) + "\n"
    assert text == (GOLDEN / f"top-{width}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [20, 40, 79, 80, 100, 120, 300])
@pytest.mark.parametrize("view", [VIEW, AWAY, EMPTY, replace(VIEW, requests=None)])
def test_no_line_is_too_wide_and_all_are_ascii(view: View, width: int) -> None:
    lines = screen(view, width)
    assert lines
    for line in lines:
        assert len(line) <= width
        assert line.isascii()
        assert line.isprintable()


def test_what_is_missing_is_said() -> None:
    assert "REDIS IS AWAY" in screen(AWAY, 80)[0]
    assert "--front" in screen(replace(VIEW, requests=None), 80)[-1]

    empty = screen(EMPTY, 80)
    assert "NOT READY" in empty[0]
    assert "no model has been announced" in empty
    assert "no worker is alive" in empty


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    evil = msgspec.structs.replace(NOW.workers[1], pool="\x1b[2J\n")
    lines = screen(View(msgspec.structs.replace(NOW, workers=(evil,))), 120)
    for line in lines:
        assert "\x1b" not in line
        assert "\n" not in line


def test_a_table_drops_what_matters_least_and_then_shortens_names() -> None:
    headings = (Heading("NAME", is_name=True, least=6), Heading("A", rank=1), Heading("B", rank=2))
    columns = columns_of(headings, [("abcdefghijklmnop", "1", "3"), ("q", "22", "4")])
    assert table(columns, 30) == [
        "NAME               A  B",
        "abcdefghijklmnop   1  3",
        "q                 22  4",
    ]
    assert table(columns, 14) == [
        "NAME      A  B",
        "abc~nop   1  3",
        "q        22  4",
    ]
    assert table(columns, 12) == [
        "NAME       B",
        "abcd~mnop  3",
        "q          4",
    ]
    for line in table(columns, 9):
        assert len(line) <= 9


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (12.34, "12.3"), (456, "456"), (7890, "7.9k"), (123456, "123k")],
)
def test_amounts(value: float, text: str) -> None:
    assert amount(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(12, "12B"), (1536, "1.5K"), (48 << 20, "48M"), (2 << 30, "2.0G"), (5000 << 40, "5000T")],
)
def test_memory(value: int, text: str) -> None:
    assert memory(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0"),
        (4e-6, "4us"),
        (0.0031, "3.1ms"),
        (0.042, "42ms"),
        (0.9996, "1.0s"),
        (1.24, "1.2s"),
        (185, "3m05s"),
    ],
)
def test_times(seconds: float, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.9, "2s"), (60, "1m00s"), (7640, "2h07m"), (788_500, "9d03h"), (86_399, "23h59m")],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_shortened_names_keep_both_ends() -> None:
    assert shorten("abcdefghij", 5) == "ab~ij"
    assert shorten("abc", 3) == "abc"
    assert shorten("a\x1bb", 9) == "a?b"
