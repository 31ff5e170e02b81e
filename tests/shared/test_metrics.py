"""The list of metrics, and what each kind of metric exports."""

from shared.telemetry.histogram import BucketHistogram
from shared.telemetry.metric_kinds import MetricInfo, MetricSheet
from shared.telemetry.metrics import JanitorMetrics, Metrics, WorkerMetrics

_SHEETS = (Metrics().sheet, WorkerMetrics().sheet, JanitorMetrics().sheet)


def test_names_are_as_prometheus_wants_them() -> None:
    for sheet in _SHEETS:
        for metric in sheet.listed:
            is_counter = metric.kind == "counter"
            assert metric.name.endswith("_total") == is_counter, metric.name
            assert metric.meaning.endswith("."), metric.name
            assert len(set(metric.labels)) == len(metric.labels)


def test_no_name_is_given_twice_in_one_process() -> None:
    for sheet in _SHEETS:
        names = [metric.name for metric in sheet.listed]
        assert len(set(names)) == len(names)


def lines_of(sheet: MetricSheet) -> list[str]:
    return [line for line in sheet.render().decode().splitlines() if not line.startswith("#")]


def test_collected_values_are_read_when_scraped() -> None:
    sheet = MetricSheet()
    counter = sheet.collected("t_total", "counter", "T.", "a")
    histogram = sheet.collected_histogram("s", "S.", "a")
    assert lines_of(sheet) == []

    buckets = BucketHistogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 3.0):
        buckets.add(value)

    counter.read = lambda: {("x",): 3}
    histogram.read = lambda: {("y",): buckets}
    assert lines_of(sheet) == [
        't_total{a="x"} 3.0',
        's_bucket{a="y",le="1.0"} 2.0',
        's_bucket{a="y",le="2.0"} 3.0',
        's_bucket{a="y",le="+Inf"} 4.0',
        's_count{a="y"} 4.0',
        's_sum{a="y"} 6.0',
    ]
    assert buckets.count == 4
    assert buckets.total == 6.0


def test_an_alias_sums_over_what_it_does_not_name() -> None:
    sheet = MetricSheet()
    counter = sheet.counter("c_total", "C.", "a", "b")
    timing = sheet.histogram("h", "H.", "a", bounds=(1.0,))
    sheet.alias("d_total", counter, "D.", {"a": "z"}, where=lambda labels: labels.get("b") != "no")
    sheet.alias("i", timing, "I.")

    counter.labels("1", "x").inc()
    counter.labels("1", "y").inc()
    counter.labels("2", "x").inc()
    counter.labels("2", "no").inc()
    timing.labels("1").observe(0.5)
    timing.labels("2").observe(0.5)

    lines = lines_of(sheet)
    assert 'd_total{z="1"} 2.0' in lines
    assert 'd_total{z="2"} 1.0' in lines
    assert 'i_bucket{le="1.0"} 2.0' in lines
    assert 'i_bucket{le="+Inf"} 2.0' in lines
    assert "i_count 2.0" in lines
    assert "i_sum 1.0" in lines
    assert sheet.listed[2:] == [
        MetricInfo("d_total", "counter", ("z",), "D."),
        MetricInfo("i", "histogram", (), "I."),
    ]
