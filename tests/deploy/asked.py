"""What asks Prometheus here: the rules, the dashboard, the guides and the templates; and who checks
it."""

import json
import re
from functools import cache
from typing import Any

import yaml

from tests.deploy.compose_files import ROOT
from tests.deploy.exported import OTHERS, Series, exported
from tests.deploy.promql import Checker

PROMETHEUS, GRAFANA = ROOT / "deploy" / "prometheus", ROOT / "deploy" / "grafana"
BOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "aios.json").read_text())
GROUPS: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"]
RECORDED = [rule for group in GROUPS for rule in group["rules"] if "record" in rule]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
_FROM_GRAFANA = {"$__rate_interval": "5m", "$__range": "1h"}


@cache
def checker() -> Checker:
    """That knows what is exported, and what the rules make of it, in their order."""
    known = {**exported(), **OTHERS}
    found = Checker(known)
    for rule in RECORDED:
        labels = found.check(rule["expr"])
        assert labels is not None
        known[rule["record"]] = Series("gauge", labels)
    return found


def plain(expression: str) -> str:
    """As Prometheus gets it from Grafana, or from a template of Helm."""
    for name, value in _FROM_GRAFANA.items():
        expression = expression.replace(name, value)
    return expression.replace("%s", "").replace('\\"', '"').replace("\\|", "|")


def documented() -> list[str]:
    """The expressions in the guides, which are more than a name."""
    texts = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
    spans = [span for text in texts for span in re.findall(r"`([^`\n]+)`", text)]
    return [
        span
        for span in spans
        if re.match(r"[a-z_ (]*\b(aios|haproxy)_\w+[({[]|\w+ ?(by )?\(.*aios_", span)
    ]


def in_templates() -> list[str]:
    """The expressions that the files of Helm make."""
    texts = [
        path.read_text()
        for path in (ROOT / "deploy").rglob("*")
        if path.suffix in (".yaml", ".tpl")
    ]
    return [
        made
        for text in texts
        for made in re.findall(r'printf "((?:[^"\\]|\\.)*aios_(?:[^"\\]|\\.)*)"', text)
    ]
