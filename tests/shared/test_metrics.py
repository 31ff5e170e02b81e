"""The list of metrics, and that its kinds tell what they should."""

from shared.telemetry.histogram import BucketHistogram
from shared.telemetry.metric_kinds import MetricInfo, MetricSheet
from shared.telemetry.metrics import JanitorMetrics, Metrics, WorkerMetrics

_ROLES = {"front": Metrics().sheet, "worker": WorkerMetrics().sheet, "jobs": JanitorMetrics().sheet}


def listed() -> dict[str, tuple[str, tuple[str, ...], list[str], str]]:
    """Each metric with its kind, labels, the roles that export it, and its meaning."""
    found: dict[str, tuple[str, tuple[str, ...], list[str], str]] = {}
    for role, sheet in _ROLES.items():
        for item in sheet.listed:
            _, _, roles, _ = found.setdefault(item.name, (item.kind, item.labels, [], item.meaning))
            roles.append(role)
    return found


def test_names_are_as_prometheus_wants_them() -> None:
    for name, (kind, labels, _, meaning) in listed().items():
        assert name.endswith("_total") == (kind == "counter"), name
        assert meaning.endswith("."), name
        assert len(set(labels)) == len(labels)


def test_no_name_is_given_twice_in_one_process() -> None:
    for sheet in _ROLES.values():
        names = [item.name for item in sheet.listed]
        assert len(set(names)) == len(names)


def lines_of(sheet: MetricSheet) -> list[str]:
    return [line for line in sheet.render().decode().splitlines() if not line.startswith("#")]


def test_told_values_are_read_when_somebody_asks() -> None:
    sheet = MetricSheet()
    told = sheet.told("t_total", "counter", "T.", "a")
    spread = sheet.collected_histogram("s", "S.", "a")
    assert lines_of(sheet) == []
    own = BucketHistogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 3.0):
        own.add(value)
    told.read = lambda: {("x",): 3}
    spread.read = lambda: {("y",): own}
    assert lines_of(sheet) == [
        't_total{a="x"} 3.0',
        's_bucket{a="y",le="1.0"} 2.0',
        's_bucket{a="y",le="2.0"} 3.0',
        's_bucket{a="y",le="+Inf"} 4.0',
        's_count{a="y"} 4.0',
        's_sum{a="y"} 6.0',
    ]
    assert (own.count, own.total) == (4, 6.0)


def test_an_alias_sums_over_what_it_does_not_name() -> None:
    sheet = MetricSheet()
    counter = sheet.counter("c_total", "C.", "a", "b")
    timing = sheet.histogram("h", "H.", "a", bounds=(1.0,))
    sheet.alias("d_total", counter, "D.", {"a": "z"}, where=lambda labels: labels.get("b") != "no")
    sheet.alias("i", timing, "I.")
    for labels in (("1", "x"), ("1", "y"), ("2", "x"), ("2", "no")):
        counter.labels(*labels).inc()
    for name in ("1", "2"):
        timing.labels(name).observe(0.5)
    lines = lines_of(sheet)
    assert {'d_total{z="1"} 2.0', 'd_total{z="2"} 1.0'} <= set(lines)
    assert {'i_bucket{le="1.0"} 2.0', 'i_bucket{le="+Inf"} 2.0', "i_count 2.0", "i_sum 1.0"} <= set(
        lines
    )
    assert sheet.listed[2:] == [
        MetricInfo("d_total", "counter", ("z",), "D."),
        MetricInfo("i", "histogram", (), "I."),
    ]
