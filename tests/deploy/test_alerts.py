"""Alert rules read exported metrics, say what to do, and fire when they should."""

import re
import shutil
import subprocess

import pytest
import yaml

from shared.errors import FleetError, codes_below
from tests.fixtures.deploy.asked import ALERTS, PROMETHEUS, RECORDED, checker
from tests.fixtures.deploy.compose_files import ROOT
from tests.fixtures.deploy.exported import OTHERS, exported

RUNBOOK = ROOT / "docs" / "operations.md"
TESTED = yaml.safe_load((PROMETHEUS / "alerts.test.yaml").read_text())["tests"]


def test_rules_ask_for_what_is_exported() -> None:
    for rule in ALERTS.values():
        checker().check(rule["expr"])


def test_an_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for name, rule in ALERTS.items():
        assert name.startswith("Aios"), name
        assert re.fullmatch(r"\d+[sm]", rule["for"]), name
        assert rule["labels"]["severity"] in ("warning", "critical"), name
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, name

        labels = checker().check(rule["expr"])
        named = re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values()))
        assert labels is not None, name
        assert set(named) <= labels, name


def test_runbooks_are_of_the_agreed_names() -> None:
    runbooks = {rule["annotations"]["runbook"] for rule in ALERTS.values()}
    assert runbooks == {
        "docs/operations.md#queue-grows",
        "docs/operations.md#no-worker",
        "docs/operations.md#slow-first-token",
        "docs/operations.md#errors",
        "docs/operations.md#redis",
        "docs/operations.md#memory",
        "docs/operations.md#takeovers",
        "docs/operations.md#dead-jobs",
        "docs/operations.md#rejections",
        "docs/operations.md#stale-workers",
        "docs/operations.md#cache",
        "docs/operations.md#front-down",
    }


def test_the_guide_has_every_alert() -> None:
    guide = (ROOT / "docs" / "metrics.md").read_text()
    assert re.findall(r"^\| `(Aios\w+)` \|", guide, re.MULTILINE) == list(ALERTS)


def test_the_runbook_has_every_anchor() -> None:
    anchors = set(re.findall(r'<a (?:id|name)="([\w-]+)"', RUNBOOK.read_text()))
    # GitHub makes an anchor of every heading, too.
    for heading in re.findall(r"^#+ (.+)$", RUNBOOK.read_text(), re.MULTILINE):
        words = re.sub(r"[^\w -]", "", heading.lower())
        anchors.add(words.replace(" ", "-"))

    for rule in ALERTS.values():
        assert rule["annotations"]["runbook"].partition("#")[2] in anchors


def test_errors_of_ours_are_all_that_are_not_the_callers() -> None:
    [rule] = [rule for rule in RECORDED if rule["record"] == "aios:errors:ratio5m"]
    [codes] = re.findall(r'code=~"([^"]+)"', rule["expr"])
    assert set(codes.split("|")) == codes_below(600) - codes_below(500) | {FleetError.code}


def test_every_alert_is_seen_to_fire_and_not_to_fire() -> None:
    firing = set()
    silent = set()
    for test in TESTED:
        for case in test.get("promql_expr_test", []):
            [name] = re.findall(r'alertname="(\w+)"', case["expr"])
            if case["exp_samples"]:
                firing.add(name)
            else:
                silent.add(name)

    assert firing == set(ALERTS)
    assert silent == set(ALERTS)


def test_series_of_the_rules_tests_are_as_they_are_exported() -> None:
    known = {**exported(), **OTHERS}
    for test in TESTED:
        for series in test["input_series"]:
            text = series["series"]
            name = re.findall(r"^(\w+)", text)[0]
            labels = set(re.findall(r"(\w+)=", text))
            assert labels <= known[name].labels, text
            assert known[name].labels - labels <= {"job", "call"}, text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool")
@pytest.mark.parametrize(
    "command",
    [
        ("check", "rules", "alerts.yaml"),
        ("check", "config", "prometheus.yaml"),
        ("test", "rules", "alerts.test.yaml"),
    ],
)
def test_promtool_agrees(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
