"""The requirements map lists every number once, and names only tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAP = (ROOT / "docs" / "requirements-map.md").read_text()
LAST = {"A": 137, "B": 103, "C": 61, "D": 107, "X": 33}


def test_every_number_stands_there_once() -> None:
    # A row is about one number, such as A7, or a range, such as A7-A9.
    rows = re.findall(r"^\| ([A-DX])(\d+)(?:-[A-DX](\d+))? \|", MAP, re.MULTILINE)
    numbers = []
    for letter, first, last in rows:
        for number in range(int(first), int(last or first) + 1):
            numbers.append(f"{letter}{number}")

    expected = []
    for letter, last in LAST.items():
        for number in range(1, last + 1):
            expected.append(f"{letter}{number}")

    assert numbers == expected


def test_every_file_it_names_exists() -> None:
    for name in re.findall(r"`((?:\w+/)*test_\w+\.py)`", MAP):
        assert (ROOT / "tests" / name).is_file(), name
    for name in re.findall(r"`((?:api|worker|shared|scripts|config|docs)/[\w/.-]*)`", MAP):
        if not name.startswith(("shared/test_", "api/test_", "worker/test_", "scripts/test_")):
            assert (ROOT / name).exists(), name
