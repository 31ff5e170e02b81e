"""Guides, templates and deployed files read exported metrics, and the check refuses expressions
that would give nothing."""

import re
from typing import get_args

import pytest

from shared.tasks.runner_options import Scoring
from tests.fixtures.deploy.asked import checker, documented, in_templates, plain
from tests.fixtures.deploy.compose_files import ROOT
from tests.fixtures.deploy.exported import exported
from tests.fixtures.deploy.promql import Misfit


def test_guides_ask_for_what_is_exported() -> None:
    expressions = documented()
    assert len(expressions) >= 8
    for expression in expressions:
        checker().check(plain(expression))


def test_templates_ask_for_what_is_exported() -> None:
    for expression in in_templates():
        checker().check(plain(expression))


def test_files_that_are_deployed_name_no_other_metrics() -> None:
    for path in (ROOT / "deploy").rglob("*"):
        if path.suffix not in (".yaml", ".tpl", ".json", ".cfg"):
            continue
        names = set(re.findall(r"(?<![\w./-])aios_[a-z0-9_]+", path.read_text()))
        # `aios_compat` is a way to score, not a metric.
        names -= set(get_args(Scoring))
        assert names <= exported().keys(), path


@pytest.mark.parametrize(
    "expression",
    [
        "aios_nothing",
        "aios_queue_depth + ",
        "aios_ttft_seconds",
        "aios_jobs_total",
        'aios_queue_depth{pool="a"}',
        'aios_queue_depth{state="waiting"}',
        'aios_queue_waiting{class=~"bulk|batch"}',
        'sum(rate(aios_errors_total{code="oops"}[5m]))',
        'aios_janitor_found_total{what="x"}',
        "rate(aios_queue_depth[5m])",
        "max_over_time(aios_jobs_total[5m])",
        "sum by (pool) (aios_queue_depth)",
        "histogram_quantile(0.9, sum(rate(aios_ttft_seconds_bucket[5m])))",
        "histogram_quantile(0.9, rate(aios_ttft_seconds_sum[5m]))",
        "aios_workers / aios_queue_depth",
        "aios_workers and on (model) aios_queue_depth",
        "aios_workers and ignoring (pool) aios_queue_depth",
        "topk(3, rate(aios_queue_depth[5m]))",
        "label_replace(aios_workers, 'a', '$1', 'pool', '(.*)')",
        "aios_queue_depth[5m:1m]",
    ],
)
def test_the_check_sees_what_would_tell_nothing(expression: str) -> None:
    with pytest.raises(Misfit):
        checker().check(expression)
