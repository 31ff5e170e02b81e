"""The dashboard is what its script writes, reads exported metrics, and has a layout that Grafana
takes."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from scripts.tools.dashboard.__main__ import dashboard
from tests.fixtures.deploy.asked import BOARD, GRAFANA, checker, plain
from tests.fixtures.deploy.exported import exported
from tests.fixtures.deploy.promql import Labels

PANELS = BOARD["panels"]


def board_queries() -> Iterator[tuple[str, str, Labels]]:
    """Yield each query's panel, its legend, and the labels of its result."""
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
        assert labels is not None, (title, legend)
        assert named == labels, (title, legend, labels)


def test_variables_and_annotations_ask_for_what_is_exported() -> None:
    queries = variables("query")
    assert len(queries) == 2
    for query in queries:
        [(series, label)] = re.findall(r"^label_values\((\w+), (\w+)\)$", query["definition"])
        assert label in exported()[series].labels

    for annotation in BOARD["annotations"]["list"]:
        checker().check(annotation["expr"])


def variables(kind: str) -> list[dict[str, Any]]:
    """Return the dashboard's variables of a kind."""
    return [variable for variable in BOARD["templating"]["list"] if variable["type"] == kind]


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        grid = panel["gridPos"]
        right = grid["x"] + grid["w"]
        bottom = grid["y"] + grid["h"]

        # Grafana's grid is 24 columns wide.
        assert right <= 24, panel["title"]
        for x in range(grid["x"], right):
            for y in range(grid["y"], bottom):
                assert (x, y) not in taken, panel["title"]
                taken.add((x, y))


def test_panels_are_numbered_and_explained() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert_distinct(ids)

    titles = []
    for panel in PANELS:
        if panel["type"] == "row":
            continue
        titles.append(panel["title"])
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]

        assert panel["targets"]
        assert_distinct([target["refId"] for target in panel["targets"]])
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
    assert_distinct(titles)


def assert_distinct(values: list[Any]) -> None:
    assert len(set(values)) == len(values)


def test_the_data_source_is_the_one_that_is_provisioned() -> None:
    path = GRAFANA / "provisioning" / "datasources" / "prometheus.yaml"
    [provisioned] = yaml.safe_load(path.read_text())["datasources"]
    [variable] = variables("datasource")

    assert provisioned["uid"] == variable["current"]["value"]
    assert provisioned["type"] == variable["query"]
