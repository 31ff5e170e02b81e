"""Write the Grafana dashboard.

    python -m scripts.tools.dashboard > deploy/grafana/dashboards/aios.json

`rows.py` lists what is shown. This module writes it in the format of Grafana 11. A test compares
the file with the output.
"""

import json
import sys
from itertools import count
from typing import Any

from scripts.tools.dashboard.panel import Panel
from scripts.tools.dashboard.rows import ROWS, VARIABLES

SCHEMA_VERSION = 41
# Grafana's grid has 24 columns; its rows are 30 pixels high.
_GRID_WIDTH = 24
_PANEL_HEIGHT = 8
_PANELS_PER_LINE = 4
_DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana's JSON model."""
    variables = [_data_source_variable()]
    for name, query in VARIABLES.items():
        variables.append(_variable(name, query))
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
        "templating": {"list": variables},
        "panels": _panels(),
    }


def _panels() -> list[dict[str, Any]]:
    """Return all rows and panels, with their places in the grid.

    A row's title is followed by lines of up to four panels, which share the width evenly.
    """
    panels: list[dict[str, Any]] = []
    ids = count(1)
    y = 0
    for title, row in ROWS.items():
        panels.append(_row(next(ids), title, y))
        y += 1
        for start in range(0, len(row), _PANELS_PER_LINE):
            line = row[start : start + _PANELS_PER_LINE]
            width = _GRID_WIDTH // len(line)
            for column, panel in enumerate(line):
                position = {"x": column * width, "y": y, "w": width, "h": _PANEL_HEIGHT}
                panels.append(_panel(next(ids), panel, position))
            y += _PANEL_HEIGHT
    return panels


def _row(panel_id: int, title: str, y: int) -> dict[str, Any]:
    return {
        "id": panel_id,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"x": 0, "y": y, "w": _GRID_WIDTH, "h": 1},
        "panels": [],
    }


def _panel(panel_id: int, panel: Panel, position: dict[str, int]) -> dict[str, Any]:
    custom: dict[str, Any] = {
        "lineWidth": 1,
        "fillOpacity": 10,
        "showPoints": "never",
        "spanNulls": False,
    }
    if panel.is_stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    return {
        "id": panel_id,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATA_SOURCE,
        "gridPos": position,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": custom},
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": _targets(panel),
    }


def _targets(panel: Panel) -> list[dict[str, Any]]:
    """Return the queries of a panel, which Grafana calls A, B, C and so on."""
    targets = []
    for index, (legend, expression) in enumerate(panel.queries.items()):
        target = {
            "refId": chr(ord("A") + index),
            "datasource": _DATA_SOURCE,
            "expr": expression,
            "legendFormat": legend,
        }
        targets.append(target)
    return targets


def _data_source_variable() -> dict[str, Any]:
    """Return the variable with which one chooses the Prometheus of the dashboard."""
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {"text": "Prometheus", "value": "prometheus"},
        "hide": 0,
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    """Return a variable with which one chooses some or all values of a label."""
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _DATA_SOURCE,
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
    """Return the annotation that marks where alerts of the fleet fired."""
    return {
        "name": "Alerts",
        "datasource": _DATA_SOURCE,
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
