"""docs/conformance.md, the table of traps, the code and the tests say the same."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.conformance.traps import TRAPS
from tests.parts import ROOT

_HERE = Path(__file__).parent


def _tests() -> dict[int, list[str]]:
    """The names of the tests that are marked with each trap."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted(_HERE.glob("test_*.py")):
        for function in ast.parse(path.read_text()).body:
            if isinstance(function, ast.FunctionDef):
                marks = [ast.unparse(decorator) for decorator in function.decorator_list]
                for number in (int(mark[5:-1]) for mark in marks if re.fullmatch(r"trap\(\d+\)", mark)):
                    found[number].append(function.name)
    return found


def _rows() -> dict[int, tuple[str, list[str], list[str]]]:
    """What, guards and tests of each trap as the page has them."""
    rows = {}
    for line in (ROOT / "docs/conformance.md").read_text().splitlines():
        if cells := re.fullmatch(r"\| (\d+) \| (.*) \| (.*) \| (.*) \|", line):
            rows[int(cells[1])] = (cells[2], re.findall(r"`([^`]+)`", cells[3]), re.findall(r"`([^`]+)`", cells[4]))
    return rows


def test_all_traps_are_there() -> None:
    assert list(TRAPS) == list(range(1, 24))
    assert sorted(_tests()) == list(TRAPS)


def test_a_test_is_named_after_its_trap() -> None:
    for number, names in _tests().items():
        assert [name for name in names if not name.startswith(f"test_trap_{number:02}_")] == []


def test_the_page_tells_each_trap_its_guards_and_its_tests() -> None:
    tests = _tests()
    expected = {number: (trap.what, list(trap.guards), tests[number]) for number, trap in TRAPS.items()}
    assert _rows() == expected


@pytest.mark.parametrize("guard", sorted({guard for trap in TRAPS.values() for guard in trap.guards}))
def test_each_guard_is_in_the_code(guard: str) -> None:
    path, _, name = guard.partition(":")
    body: list[ast.stmt] = ast.parse((ROOT / path).read_text()).body
    for part in name.split("."):
        (found,) = [node for node in body if part in _names(node)]
        body = getattr(found, "body", [])


def _names(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
    return []
