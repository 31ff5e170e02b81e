"""`aios ab report` tells how the arms of an experiment have done, and how sure that is."""

import asyncio
import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from scripts.cli.ab.traffic import TrafficReport, report_of
from scripts.cli.ab.traffic_report import markdown_lines
from scripts.cli.aios import main
from shared.figures import Mean, fisher_test, mean_of, permutation_test, share_of
from shared.messages import Cancelled, Failed
from shared.queue.experiment_log import ExperimentLog, Feedback, JobOutcome
from tests.fixtures.desk import DONE, Desk

GOOD = [1.0] * 12
BAD = [-1.0] * 11


def outcomes(arm: str, *states: str, cost: int = 5) -> list[JobOutcome]:
    """Return an outcome of a request of its own for each state."""
    found = []
    for number, state in enumerate(states):
        outcome = JobOutcome(
            job_id=f"{arm}-{number}",
            request_id=f"{arm}-{number}",
            arm=arm,
            state=state,
            first_ms=10 * number if state == "done" else None,
            total_ms=100 * number,
            cost=cost,
        )
        found.append(outcome)
    return found


def scored(arm: str, scores: list[float]) -> list[Feedback]:
    return [Feedback(f"{arm}-{number}", arm, score, "") for number, score in enumerate(scores)]


# Statistics.


def test_means_have_intervals() -> None:
    assert mean_of([0.5]) == Mean(count=1, value=0.5, low=0.5, high=0.5)
    few = mean_of([0, 1] * 50)
    many = mean_of([0, 1] * 5000)
    for mean, half in ((few, 0.098), (many, 0.0098)):
        assert mean.value == 0.5
        assert mean.high - mean.value == pytest.approx(half, rel=0.15)
        assert mean.value - mean.low == pytest.approx(half, rel=0.15)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_a_mean_lies_in_its_interval(values: list[float]) -> None:
    mean = mean_of(values)
    assert mean.low - 1e-9 <= mean.value <= mean.high + 1e-9
    assert min(values) - 1e-9 <= mean.low


def test_the_permutation_test_is_exact_enough() -> None:
    """Among the 70 ways to deal 8 values, 2 are as far apart as these."""
    assert permutation_test([0, 1, 2, 3], [10, 11, 12, 13]) == pytest.approx(2 / 70, abs=0.012)
    assert permutation_test([1, 1], [1, 1]) == 1
    assert permutation_test([0.1, 0.2, 0.3], [0.3, 0.1, 0.2]) == 1


def test_of_many_values_the_permutation_test_is_the_normal_one() -> None:
    rng = random.Random(1)
    first = [rng.random() for _ in range(600)]
    second = [rng.random() + 0.03 for _ in range(600)]
    by_formula = permutation_test(first, second)
    by_dealing = permutation_test(first[:499], second[:499])
    assert 0.01 < by_formula < 0.4
    assert 0.01 < by_dealing < 0.6
    assert permutation_test([1.0] * 600, [1.0] * 600) == 1
    assert permutation_test([0.0, 1.0] * 600, [0.0, 0.9] * 600) < 0.05


def test_there_are_few_false_alarms() -> None:
    rng = random.Random(2)
    num_alarms = 0
    for _ in range(100):
        first = [float(rng.choice((-1, 1))) for _ in range(20)]
        second = [float(rng.choice((-1, 1))) for _ in range(20)]
        num_alarms += permutation_test(first, second) < 0.05
    assert num_alarms <= 12


def test_fishers_test() -> None:
    """The first is Fisher's lady who tastes tea; the others were computed by scipy."""
    assert fisher_test(share_of(3, 4), share_of(1, 4)) == pytest.approx(34 / 70)
    assert fisher_test(share_of(8, 10), share_of(1, 6)) == pytest.approx(0.034965, rel=1e-4)
    assert fisher_test(share_of(0, 50), share_of(0, 70)) == pytest.approx(1)
    assert fisher_test(share_of(500, 100_000), share_of(700, 100_000)) < 1e-6


@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_fishers_test_knows_no_order(one: int, other: int, data: st.DataObject) -> None:
    first = share_of(data.draw(st.integers(0, one)), one)
    second = share_of(data.draw(st.integers(0, other)), other)
    p = fisher_test(first, second)
    assert 0 < p <= 1
    assert math.isclose(p, fisher_test(second, first))


# The figures.


def test_the_figures_of_arms() -> None:
    found = outcomes("a", "done", "done", "done", "failed", "cancelled")
    report = report_of("split", found, scored("a", [1, 0]), known_arms=["b", "a"])

    first, second = report.arms
    assert first.arm == "a"
    assert (first.requests, first.jobs, first.cost) == (5, 5, 25)
    shares = (first.done, first.failed, first.cancelled, first.failed_requests)
    assert [share.count for share in shares if share] == [3, 1, 1, 1]
    assert first.answer_ms is not None
    assert first.first_token_ms is not None
    assert first.answer_ms.p50 == 100
    assert first.first_token_ms.p95 == pytest.approx(19)
    assert first.feedback is not None
    assert first.feedback.count == 2
    assert first.feedback.value == 0.5

    assert second.arm == "b"
    assert second.jobs == 0
    assert second.done is None
    assert second.answer_ms is None
    assert second.feedback is None


def test_a_request_fails_once_however_many_of_its_jobs_do() -> None:
    jobs = []
    for state in ("failed", "failed", "cancelled"):
        jobs.append(JobOutcome("j", "r", "a", state, None, 1, 0))
    [arm] = report_of("split", jobs, []).arms
    assert arm.jobs == 3
    assert arm.requests == 1
    assert arm.failed_requests == share_of(1, 1)


def written(report: TrafficReport) -> str:
    return "\n".join(markdown_lines(report))


def test_too_little_data_is_admitted() -> None:
    few = outcomes("a", *["done"] * 9) + outcomes("b", *["done"] * 50)
    report = report_of("split", few, scored("a", GOOD[:9]) + scored("b", BAD))
    assert report.test is not None
    assert report.test.feedback_p is None
    assert report.test.failures_p is None
    text = written(report)
    assert "Too little feedback to compare the arms: fewer than 10 scores" in text
    assert "Too few requests to compare failures: fewer than 10" in text


def test_differences_are_told_from_chance() -> None:
    found = outcomes("a", *["done"] * 20) + outcomes("b", *["done"] * 5, *["failed"] * 15)
    text = written(report_of("split", found, scored("a", GOOD) + scored("b", BAD)))
    assert "Feedback: a less b is +2.00, permutation test p = 0.0005. a is rated better" in text
    assert "Failures: 0 of 20 requests of a, 15 of 20 of b" in text
    assert "b fails more often, and chance would hardly do that." in text

    found = outcomes("a", *["done"] * 20) + outcomes("b", *["done"] * 19, "failed")
    text = written(report_of("split", found, scored("a", GOOD) + scored("b", GOOD)))
    assert text.count("The difference may be chance.") == 2


def test_the_table() -> None:
    text = written(report_of("split", outcomes("a", "done", "done"), scored("a", [1.0])))
    assert text == (
        "split: 2 requests.\n"
        "\n"
        "| arm | requests | jobs | done | failed | cancelled | first token p50 / p95, ms "
        "| whole p50 / p95, ms | cost, tokens | feedback | mean score |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|\n"
        "| a | 2 | 2 | 100.0 % (34.2 to 100.0) | 0.0 % (0.0 to 65.8) | 0.0 % (0.0 to 65.8) "
        "| 5 / 10 | 50 / 95 | 10 | 1 | +1.00 (+1.00 to +1.00) |"
    )


# The command.


async def test_the_report_of_a_fleet(
    redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log = None
    for arm in ("left", "right"):
        desk = Desk(redis, arm)
        log = ExperimentLog(desk.broker)
        for end in (DONE, Failed("worker_failed", "it broke")):
            request, _ = await desk.request(experiment="split")
            [claim] = await desk.take()
            await desk.say(claim, end)
            await log.rate(request.id, "public", score=0.5, comment="")
        jobs = await desk.submit(experiment="split")
        await desk.submissions.end(jobs, Cancelled("client"))

    words = ["ab", "report", "split", "--redis-url", redis_url]
    assert await asyncio.to_thread(main, words) == 0
    printed = capsys.readouterr().out
    assert "split: 6 requests." in printed
    assert "| left | 3 | 3 | 33.3 % " in printed
    assert "+0.50" in printed

    assert await asyncio.to_thread(main, [*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["experiment"] == "split"
    assert [arm["arm"] for arm in document["arms"]] == ["left", "right"]
    assert document["arms"][0]["failed"]["count"] == 1
    assert document["test"] == {
        "first": "left",
        "second": "right",
        "feedback_p": None,
        "failures_p": None,
    }


async def test_an_experiment_without_a_log(
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is an error, unless the settings know the experiment."""
    words = ["ab", "report", "split", "--redis-url", redis_url]
    assert await asyncio.to_thread(main, words) == 1
    assert "split: no request of this experiment has ended" in capsys.readouterr().err

    monkeypatch.setenv("AIOS_AB", '{"split": {"left": 1, "right": 1}}')
    assert await asyncio.to_thread(main, words) == 0
    assert "| left | 0 | 0 | - |" in capsys.readouterr().out
