"""Mutants are small, valid and in code that does something.

A test that does not run the code lets them live.
"""

import ast
import sys
from pathlib import Path

import pytest

from scripts.tools import mutate
from scripts.tools.mutate import REPO_ROOT, TESTS, is_valid, mutants_of, try_file

PYTHON = '''
"""A docstring: 1 < 2 and True."""
LIMIT: int = 3


def most(a: int | None, b: int) -> int:
    if not a or b < LIMIT:
        note("a < b")
        return 0
    return min(a, b) + 1
'''
LUA = """-- a comment: 1 < 2
local function f(x)
  if x < 3 and not done then call('DEL', 'a < b') end
  return math.min(x, 1) + 2
end
"""


def changes(name: str, source: str) -> set[tuple[str, str]]:
    return {(mutant.old, mutant.text) for mutant in mutants_of(name, source)}


def test_python_is_changed_where_it_does_something() -> None:
    assert changes("a.py", PYTHON) == {
        ("3", "4"),
        ("not a", "a"),
        ("or", "and"),
        ("<", "<="),
        ("not a or b < LIMIT", "True"),
        ("not a or b < LIMIT", "False"),
        ('note("a < b")', "pass"),
        ("0", "1"),
        ("min", "max"),
        ("+", "-"),
        ("1", "2"),
        ("min(a, b) + 1", "None"),
    }
    for mutant in mutants_of("a.py", PYTHON):
        ast.parse(mutant.applied(PYTHON))


def test_lua_is_changed_outside_of_comments_and_strings() -> None:
    assert changes("a.lua", LUA) == {
        ("<", "<="),
        ("3", "4"),
        ("and", "or"),
        ("not", ""),
        ("call('DEL', 'a < b')", "local _"),
        ("math.min", "math.max"),
        ("1", "2"),
        ("+", "-"),
        ("2", "3"),
    }


@pytest.mark.parametrize("name", sorted(TESTS))
def test_the_table_names_what_is_there(name: str) -> None:
    source = (REPO_ROOT / name).read_text()
    mutants = mutants_of(name, source)
    assert len(mutants) >= 3

    num_invalid = 0
    for mutant in mutants:
        mutated = mutant.applied(source)
        assert mutated != source
        if not is_valid(name, mutated):
            num_invalid += 1
    assert num_invalid <= len(mutants) // 10

    for test in TESTS[name]:
        assert (REPO_ROOT / test).is_file()


def test_what_no_test_sees_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutants of a function without a test survive."""
    (tmp_path / "a.py").write_text("def seen(a):\n    return a\n\n\ndef unseen(a):\n    return a\n")
    (tmp_path / "test_a.py").write_text(
        "from a import seen\n\n\ndef test_it():\n    assert seen(1) == 1\n"
    )
    monkeypatch.setitem(mutate.TESTS, "a.py", ("test_a.py",))
    mutants = mutants_of("a.py", (tmp_path / "a.py").read_text())
    assert {mutant.line for mutant in mutants} == {2, 6}
    monkeypatch.setattr(sys, "dont_write_bytecode", False)

    survivors = try_file(tmp_path, "a.py", mutants)

    assert survivors == [mutant for mutant in mutants if mutant.line == 6]
