"""The numbers that a worker reports for each of its models.

A new one is a field of `ModelLoad` here, and the line in `worker/host/metrics_reporter.py` that
measures it. A field declares all that others must know of its number: Prometheus's names, the total
over the fleet, and the column of `aios top`. Presence, `aios status --json`, `GET /v1/fleet`,
`/metrics` and docs/metrics.md follow from it.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import msgspec

Kind = Literal["counter", "gauge"]
Style = Literal["count", "amount", "age", "of", "share"]


@dataclass(frozen=True)
class Column:
    """The column of a number in `aios top`.

    `rank` is as in `scripts/cli/watch/table.py`. Of the styles `count` is the number itself,
    `amount` is shortened, `age` is a time, and `of` and `share` set the number against the field
    `whole` of the same model in the same worker.
    """

    title: str
    rank: int = 0
    style: Style = "count"
    whole: str = ""


@dataclass(frozen=True)
class Total:
    """The total of a number over the whole fleet: the sum over workers, or the largest."""

    metric: str
    how: Literal["sum", "max"]
    meaning: str


@dataclass(frozen=True)
class Number:
    """A number that workers report for each model: its meaning as a sentence, and its unit.

    `metric` is its name at a worker's `/metrics`, and `total` describes it at a front's. A number
    without them is in presence alone.
    """

    meaning: str
    unit: Literal[
        "rows", "tokens", "jobs", "pages", "segments", "steps", "seconds", "tokens/s", "cost/s"
    ]
    metric: str | None = None
    total: Total | None = None
    column: Column | None = None

    @property
    def kind(self) -> Kind:
        """The kind of the metric. By the rule of Prometheus a counter's name ends in `_total`."""
        if self.metric is not None and self.metric.endswith("_total"):
            return "counter"
        return "gauge"


class ModelLoad(msgspec.Struct, frozen=True, omit_defaults=True):
    """The numbers of a worker for one of its models, since it loaded it.

    0 may also mean that a number is not known.
    """

    id: str
    running: Annotated[
        int,
        Number(
            "Rows that take part in steps.",
            "rows",
            metric="aios_worker_running",
            column=Column("BATCH", style="of", whole="max_batch"),
        ),
    ] = 0
    waiting: Annotated[
        int,
        Number(
            "Rows that wait for a place or for pages.",
            "rows",
            metric="aios_worker_waiting",
            column=Column("WAIT", rank=8),
        ),
    ] = 0
    steps_done: Annotated[
        int,
        Number(
            "Steps that running tasks have done, of those that tell of any.",
            "steps",
            metric="aios_worker_task_steps_done",
            column=Column("DONE", rank=1, style="share", whole="steps_total"),
        ),
    ] = 0
    steps_total: Annotated[
        int,
        Number("Steps that these tasks have in all.", "steps", metric="aios_worker_task_steps"),
    ] = 0
    kv_used: Annotated[
        int,
        Number(
            "Pages that running rows hold.",
            "pages",
            metric="aios_worker_kv_pages_used",
            column=Column("KV", rank=9, style="of", whole="kv_pages"),
        ),
    ] = 0
    kv_pages: Annotated[
        int,
        Number("Pages for keys and values.", "pages", metric="aios_worker_kv_pages"),
    ] = 0
    prefix_lookups: Annotated[
        int,
        Number("Rows that started.", "rows", metric="aios_worker_prefix_lookups_total"),
    ] = 0
    prefix_hits: Annotated[
        int,
        Number(
            "Rows whose prompt had been computed in part.",
            "rows",
            metric="aios_worker_prefix_hits_total",
            column=Column("HITS", rank=2, style="share", whole="prefix_lookups"),
        ),
    ] = 0
    tokens: Annotated[
        int,
        Number("Tokens generated.", "tokens", metric="aios_worker_tokens_total"),
    ] = 0
    tokens_per_s: Annotated[
        float,
        Number(
            "Tokens generated a second, lately.",
            "tokens/s",
            total=Total(
                "aios_tokens_per_second",
                "sum",
                "Tokens generated a second, lately, by all workers.",
            ),
            column=Column("TOK/S", style="amount"),
        ),
    ] = 0.0
    work_per_s: Annotated[
        float,
        Number("Cost (`task_table`) done in a second of stepping.", "cost/s"),
    ] = 0.0
    step_s: Annotated[
        float,
        Number("Time of the last step.", "seconds", column=Column("STEP", rank=11, style="age")),
    ] = 0.0
    takeovers: Annotated[
        int,
        Number(
            "Jobs taken that another take had begun or held.",
            "jobs",
            metric="aios_worker_takeovers_total",
            column=Column("TAKEN", rank=3),
        ),
    ] = 0
    errors: Annotated[
        int,
        Number(
            "Jobs that failed in the engine.",
            "jobs",
            metric="aios_worker_failures_total",
            column=Column("ERR", rank=6),
        ),
    ] = 0
    preemptions: Annotated[
        int,
        Number(
            "Rows that gave their pages back for others.",
            "rows",
            metric="aios_worker_preemptions_total",
        ),
    ] = 0
    load_s: Annotated[
        float,
        Number(
            "Time it took to load the model.",
            "seconds",
            metric="aios_worker_load_seconds",
            total=Total(
                "aios_model_load_seconds",
                "max",
                "Time the slowest worker took to load the model.",
            ),
        ),
    ] = 0.0
    warm_up_s: Annotated[
        float,
        Number(
            "Time of the model's first try, which compiles.",
            "seconds",
            metric="aios_worker_warm_up_seconds",
            total=Total(
                "aios_model_warm_up_seconds",
                "max",
                "Time of the slowest worker's first try, which compiles.",
            ),
        ),
    ] = 0.0
    jobs: Annotated[
        int,
        Number("Jobs that ended here.", "jobs"),
    ] = 0
    prompt_tokens: Annotated[
        int,
        Number("Tokens of prompts computed.", "tokens", metric="aios_worker_prompt_tokens_total"),
    ] = 0
    prefix_tokens: Annotated[
        int,
        Number(
            "Tokens of prompts that had been computed before.",
            "tokens",
            metric="aios_worker_prefix_tokens_total",
        ),
    ] = 0
    kv_cached: Annotated[
        int,
        Number(
            "Pages that only the prefix cache holds.",
            "pages",
            metric="aios_worker_kv_pages_cached",
        ),
    ] = 0
    segments: Annotated[
        int,
        Number("ACT segments, one a row.", "segments", metric="aios_worker_act_segments_total"),
    ] = 0
    settled: Annotated[
        int,
        Number(
            "Rows (a token's, or a puzzle's) that segments ended.",
            "rows",
            metric="aios_worker_act_rows_total",
        ),
    ] = 0
    drafted: Annotated[
        int,
        Number(
            "Tokens that a part of the network drafted.",
            "tokens",
            metric="aios_worker_drafted_tokens_total",
        ),
    ] = 0
    accepted: Annotated[
        int,
        Number(
            "Drafted tokens that the whole network confirmed.",
            "tokens",
            metric="aios_worker_accepted_tokens_total",
        ),
    ] = 0
    convictions: Annotated[
        int,
        Number(
            "Jobs given up here because workers crashed on them.",
            "jobs",
            metric="aios_worker_convictions_total",
        ),
    ] = 0


def _numbers() -> dict[str, Number]:
    """Return the numbers that the annotations of `ModelLoad` declare."""
    numbers: dict[str, Number] = {}
    for name, hint in get_type_hints(ModelLoad, include_extras=True).items():
        if get_origin(hint) is Annotated:
            _, number = get_args(hint)
            numbers[name] = number
    return numbers


NUMBERS = _numbers()
"""The numbers of `ModelLoad`, by the names of its fields and in their order."""
