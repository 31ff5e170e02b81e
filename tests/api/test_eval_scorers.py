"""Scorers and figures of evaluations, against values computed by hand."""

from typing import Any

import pytest

from api.evaluation.regressions import MOST_SLOWER, compared, regressions_of, sentence_of
from api.evaluation.report import (
    Accuracy,
    ItemResult,
    ModelFacts,
    Report,
    TaskReport,
    Timing,
    assignments_of,
    task_report,
)
from api.evaluation.scorers import SCORERS, score_of
from api.evaluation.sets import EvalSet, Item, chosen_sets, read_sets
from shared.errors import InvalidRequest
from shared.tasks.task_table import TASKS

SOLVED = "5346789126721953481983425678597614234268537917139248569615372842874196353452861 79"
SOLVED = SOLVED.replace(" ", "")
BLANKED = "." * 40 + SOLVED[40:]


def text(value: str) -> dict[str, Any]:
    return {"result": {"text": value}}


def vectors(*rows: list[float]) -> dict[str, Any]:
    return {"data": [{"embedding": row} for row in rows]}


def solutions(grid: object) -> dict[str, Any]:
    return {"solutions": [{"grid": grid}]}


def spoken(*parts: tuple[float, float]) -> dict[str, Any]:
    return {"result": {"parts": [{"start": start, "end": end} for start, end in parts]}}


LABELS = {"result": {"labels": [{"label": "b", "score": 0.2}, {"label": "A", "score": 0.7}]}}
RANKED = {"results": [{"index": 0, "relevance_score": 0.1}, {"index": 2, "relevance_score": 0.9}]}
FORECAST = {"result": {"forecast": [1.0, 2.0, 4.0]}}


@pytest.mark.parametrize(
    ("scorer", "answer", "expected", "score"),
    [
        ("contains", text("It is PARIS, surely."), ["Paris"], 1),
        ("contains", text("It is Rome."), ["Paris"], 0),
        ("answer", text("12 + 5 = 17\n\\boxed{17}"), "17", 1),
        ("answer", text(" 17 "), "17", 1),
        ("answer", text("\\boxed{18} is not 17"), "17", 0),
        ("label", LABELS, ["a"], 1),
        ("label", LABELS, ["b"], 0),
        # Cosines to the first: 1 / sqrt(2) and 0.6.
        ("nearest", vectors([1, 0], [1, 1], [3, 4]), 1, 1),
        ("nearest", vectors([1, 0], [1, 1], [3, 4]), 2, 0),
        ("ranked", RANKED, 2, 1),
        ("ranked", RANKED, 0, 0),
        ("sudoku", solutions(SOLVED), BLANKED, 1),
        ("sudoku", solutions([[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]]), "." * 16, 1),
        # Boxes of two rows and three columns.
        ("sudoku", solutions(["123456", "456123", "231564", "564231", "312645", "645312"]), "." * 36, 1),
        # Rows and columns are right, boxes are not.
        ("sudoku", solutions(["1234", "2341", "3412", "4123"]), "." * 16, 0),
        # A given is changed.
        ("sudoku", solutions([[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]]), "2" + "." * 15, 0),
        ("sudoku", solutions(None), BLANKED, 0),
        # One word of four replaced, one added.
        ("words", text("The quick red fox jumps"), "the quick, brown fox", 0.5),
        ("words", text("a b c d e f"), "x y", 0),
        # One character of five is wrong.
        ("characters", text("EX1TS"), "EXITS", 0.8),
        # 1 s in both, of 3 s in any.
        ("spoken", spoken((1.0, 3.0)), [[2.0, 4.0]], 1 / 3),
        ("spoken", spoken(), [], 1),
        ("spoken", spoken((0.0, 1.0)), [], 0),
        ("spoken", spoken(), [[2.0, 4.0]], 0),
        # A mean error of 1/3, where the naive one is 2.
        ("forecast", FORECAST, {"follow": [1, 2, 3], "naive": 2.0}, 5 / 6),
        ("forecast", FORECAST, {"follow": [9, 9, 9], "naive": 2.0}, 0),
        ("forecast", FORECAST, {"follow": [1, 2], "naive": 2.0}, 0),
        ("form", {"a": [{"b": 3}], "c": "x"}, {"a.0.b": [1, 3], "c": "x"}, 1),
        ("form", {"a": [{"b": 4}], "c": "x"}, {"a.0.b": [1, 3], "c": "x"}, 0),
        ("form", {"a": []}, {"a.0.b": 1}, 0),
        ("label", {"result": None}, ["a"], 0),
    ],
)  # fmt: skip
def test_scores_are_those_computed_by_hand(
    scorer: str, answer: Any, expected: Any, score: float
) -> None:
    assert score_of(scorer, answer, expected) == pytest.approx(score)


def test_every_scorer_is_used_by_a_set_and_every_modality_has_one() -> None:
    sets = read_sets()
    assert {one.scorer for one in sets.values()} == set(SCORERS)
    told_of = {TASKS[one.needs].modality for one in sets.values()}
    assert told_of == {info.modality for info in TASKS.values()}
    for one in sets.values():
        assert 2 <= len(one.items) <= 24, one.task


def test_a_digest_tells_sets_apart_that_are_not_to_be_compared() -> None:
    one = EvalSet("t", "", "generate", "contains", "", (Item("a", {"inputs": "x"}, ["y"]),))
    other = EvalSet("t", "", "generate", "contains", "", (Item("a", {"inputs": "x"}, ["z"]),))
    retold = EvalSet("t", "Told otherwise.", "generate", "contains", "", one.items)
    assert one.digest != other.digest
    assert one.digest == retold.digest


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="got 'singing'"):
        chosen_sets(read_sets(), ["mathematics", "singing"])


def facts(id: str = "m", *tasks: str, device: str = "cpu") -> ModelFacts:
    return ModelFacts(id, device=device, dtype="float32", tasks=tasks or ("generate",))


def test_a_set_whose_model_is_not_served_is_told_of() -> None:
    sets = chosen_sets(read_sets(), ["mathematics", "text-ranking"])
    models = [facts("a"), facts("b"), facts("c", "embed")]
    assignments, skipped = assignments_of(sets, models, None)
    assert [(one.task, one.model.id) for one in assignments] == [
        ("mathematics", "a"),
        ("mathematics", "b"),
    ]
    assert [(one.task, one.model) for one in skipped] == [("text-ranking", None)]
    assignments, skipped = assignments_of(sets, models, "c")
    assert assignments == []
    assert [(one.task, one.model) for one in skipped] == [
        ("mathematics", "c"),
        ("text-ranking", "c"),
    ]


def test_figures_are_those_computed_by_hand() -> None:
    one = EvalSet("t", "", "generate", "contains", "", (Item("a", {}),))
    items = [
        ItemResult("a", 1.0, latency_ms=100, first_token_ms=20, tokens=5),
        ItemResult("b", 1.0, latency_ms=200, first_token_ms=40, tokens=5),
        ItemResult("c", 1.0, latency_ms=400, first_token_ms=400, tokens=1),
        ItemResult("d", 0.0, error="500: internal error"),
    ]
    report = task_report(one, facts(), items)
    assert report.errors == 1
    assert report.latency_ms == Timing(p50=200, p95=380)
    assert report.first_token_ms == Timing(p50=40, p95=364)
    # The gaps are 20 and 40 ms.
    assert report.token_interval_ms == 30
    assert report.tokens == 11
    assert report.tokens_per_s == round(11 / 0.7, 3)
    # Wilson's interval of 3 of 4, from a table.
    assert report.accuracy.count == 4
    assert report.accuracy.value == 0.75
    assert report.accuracy.low == pytest.approx(0.3006, abs=1e-4)
    assert report.accuracy.high == pytest.approx(0.9544, abs=1e-4)


def result(
    latency_ms: float = 100.0, right: float = 0.8, *, low: float = 0.6, device: str = "cpu"
) -> TaskReport:
    return TaskReport(
        task="t",
        model=facts(device=device),
        set_digest="d",
        accuracy=Accuracy(20, right, low, 0.9),
        errors=0,
        latency_ms=Timing(latency_ms, latency_ms),
        first_token_ms=None,
        token_interval_ms=None,
        tokens=0,
        tokens_per_s=None,
        items=(),
    )


@pytest.mark.parametrize(
    ("now", "kinds"),
    [
        (result(), []),
        (result(100 * (1 + MOST_SLOWER)), []),
        (result(120.1), ["latency"]),
        (result(10, right=0.6), []),
        (result(10, right=0.59), ["accuracy"]),
        (result(500, right=0.0), ["latency", "accuracy"]),
    ],
)
def test_the_limits_of_a_regression(now: TaskReport, kinds: list[str]) -> None:
    found = regressions_of(now, result(), "before")
    assert [regression.kind for regression in found] == kinds
    for regression in found:
        assert sentence_of(now, regression).endswith(
            ("100.0 ms of before", "which begins at 60.0 %")
        )


def report(id: str, *results: TaskReport, is_accepted: bool = False) -> Report:
    return Report(id, "2026-11-30", "http", results, is_accepted=is_accepted)


def test_a_regression_is_no_baseline_until_it_is_accepted() -> None:
    first = report("first", result(100))
    second = compared(report("second", result(150)), [first])
    third = compared(report("third", result(150)), [second, first])
    assert [one.regressions[0].baseline for one in (second.results[0], third.results[0])] == [
        "first",
        "first",
    ]

    accepted = Report("second", "", "http", second.results, is_accepted=True)
    third = compared(report("third", result(150)), [accepted, first])
    assert third.regressions == []
    assert third.results[0].baseline == "second"


def test_what_was_measured_otherwise_is_not_compared() -> None:
    first = report("first", result(100))
    on_gpu = compared(report("gpu", result(500, device="cuda")), [first])
    assert on_gpu.results[0].baseline is None
    by_fleet = Report("fleet", "", "fleet", (result(500),))
    assert compared(by_fleet, [first]).results[0].baseline is None
