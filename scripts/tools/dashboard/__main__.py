"""Writes the Grafana dashboard: `python -m scripts.tools.dashboard >
deploy/grafana/dashboards/aios.json`.

What is shown is listed in `rows.py`; here is how Grafana 11 wants it. A test compares the file.
"""

import json
import sys
from collections.abc import Iterator
from itertools import count
from typing import Any

from scripts.tools.dashboard.panel import Panel
from scripts.tools.dashboard.rows import ROWS, VARIABLES

SCHEMA_VERSION = 41
_WIDTH, _HEIGHT = 24, 8
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    return {
        "id": None,
        "uid": "aios",
        "title": "HRM fleet",
        "description": (
            "Traffic, latency, queues, workers and failures; docs/metrics.md explains the names."
        ),
        "tags": ["aios", "hrm"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [_alerts()]},
        "links": [],
        "templating": {
            "list": [_source(), *(_variable(name, query) for name, query in VARIABLES.items())]
        },
        "panels": list(_panels()),
    }


def _panels() -> Iterator[dict[str, Any]]:
    """Rows one below the other, their panels from left to right as wide as they divide the row."""
    ids, y = count(1), 0
    for title, panels in ROWS.items():
        yield {
            "id": next(ids),
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1},
            "panels": [],
        }
        y += 1
        for first in range(0, len(panels), 4):
            line = panels[first : first + 4]
            width = _WIDTH // len(line)
            for place, panel in enumerate(line):
                yield _panel(
                    next(ids), panel, {"x": place * width, "y": y, "w": width, "h": _HEIGHT}
                )
            y += _HEIGHT


def _panel(number: int, panel: Panel, where: dict[str, int]) -> dict[str, Any]:
    custom = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": False}
    custom |= {"stacking": {"mode": "normal", "group": "A"}} if panel.is_stacked else {}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": where,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": custom},
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": expr,
                "legendFormat": legend,
            }
            for index, (legend, expr) in enumerate(panel.queries.items())
        ],
    }


def _source() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {"text": "Prometheus", "value": "prometheus"},
        "hide": 0,
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Aios.*",alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{model}} {{instance}}",
    }


def main() -> int:
    print(json.dumps(dashboard(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
