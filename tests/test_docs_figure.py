"""The figure of the architecture (C61): it is read in light and dark, and its boxes are the roles."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIGURE = ROOT / "docs" / "images" / "architecture.svg"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def figure() -> ElementTree.Element:
    return ElementTree.parse(FIGURE).getroot()


def test_it_has_a_title_and_a_description_for_who_does_not_see_it(
    figure: ElementTree.Element,
) -> None:
    assert figure.attrib["role"] == "img"
    for name in figure.attrib["aria-labelledby"].split():
        [element] = [element for element in figure if element.get("id") == name]
        assert element.text


def test_the_boxes_are_the_roles_and_the_stores(figure: ElementTree.Element) -> None:
    names = [text.text for text in figure.iter(f"{SVG}text") if text.get("class") == "name"]
    assert names == ["clients", "api", "Redis", "worker", "jobs", "artifacts", "models"]


def test_every_colour_has_one_for_dark_pages(figure: ElementTree.Element) -> None:
    style = figure.findtext(f"{SVG}style") or ""
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    coloured = re.findall(r"(\.\w+) \{[^}]*(?:fill|stroke): #", light)
    assert len(coloured) > 8
    assert set(coloured) == set(re.findall(r"(\.\w+) \{", dark))


def test_every_class_is_drawn_in_some_style(figure: ElementTree.Element) -> None:
    style = figure.findtext(f"{SVG}style") or ""
    used = {element.get("class") for element in figure.iter()} - {None}
    for name in used:
        assert f".{name} {{" in style, name


def test_nothing_is_loaded_and_both_pages_show_it() -> None:
    assert re.findall(r"(?:href|src|url)\W+https?:", FIGURE.read_text(encoding="utf-8")) == []
    assert "(docs/images/architecture.svg)" in (ROOT / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert "(images/architecture.svg)" in page
