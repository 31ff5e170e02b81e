"""The dashboard: what its script writes, asking for what is exported, and laid out as Grafana wants
it."""

import re
from collections.abc import Iterator

import yaml

from scripts.tools.dashboard.__main__ import dashboard
from tests.fixtures.deploy.asked import BOARD, GRAFANA, checker, plain
from tests.fixtures.deploy.exported import exported
from tests.fixtures.deploy.promql import Labels

PANELS = BOARD["panels"]


def board_queries() -> Iterator[tuple[str, str, Labels]]:
    """Each query of the dashboard: the panel, the legend, and the labels that it gives."""
    for panel in PANELS:
        for target in panel.get("targets", []):
            yield panel["title"], target["legendFormat"], checker().check(plain(target["expr"]))


def test_the_dashboard_is_what_the_script_writes() -> None:
    assert dashboard() == BOARD, (
        "python -m scripts.tools.dashboard > deploy/grafana/dashboards/aios.json"
    )


def test_panels_ask_for_what_is_exported_and_name_labels_they_have() -> None:
    for title, legend, labels in board_queries():
        named = set(re.findall(r"{{(\w+)}}", legend))
        assert labels is not None and named == labels, (title, legend, labels)


def test_variables_and_annotations_ask_for_what_is_exported() -> None:
    queries = [
        item["definition"] for item in BOARD["templating"]["list"] if item["type"] == "query"
    ]
    assert len(queries) == 2
    for query in queries:
        [(series, label)] = re.findall(r"^label_values\((\w+), (\w+)\)$", query)
        assert label in exported()[series].labels
    for annotation in BOARD["annotations"]["list"]:
        checker().check(annotation["expr"])


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


def test_panels_are_numbered_and_explained() -> None:
    shown = [panel for panel in PANELS if panel["type"] != "row"]
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for panel in shown:
        assert panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"], (
            panel["title"]
        )
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    assert len({panel["title"] for panel in shown}) == len(shown)


def test_the_data_source_is_the_one_that_is_provisioned() -> None:
    provisioned = yaml.safe_load(
        (GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text()
    )
    [source] = [item for item in BOARD["templating"]["list"] if item["type"] == "datasource"]
    assert [item["uid"] for item in provisioned["datasources"]] == [source["current"]["value"]]
    assert [item["type"] for item in provisioned["datasources"]] == [source["query"]]
