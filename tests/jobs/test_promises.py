"""docs/promises.md names, for each promise, tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.parts import ROOT

_PAGE = (ROOT / "docs/promises.md").read_text()
_PROMISES = {text.partition("\n")[0]: text for text in re.split(r"^### ", _PAGE, flags=re.MULTILINE)[1:]}


@cache
def _tests_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("promise", _PROMISES)
def test_a_promise_says_how_it_is_kept_and_names_tests_that_exist(promise: str) -> None:
    named = re.findall(r"^- `(tests/\S+\.py)::(test_\w+)`$", _PROMISES[promise], re.MULTILINE)

    assert re.search(r"^Kept by: \S", _PROMISES[promise], re.MULTILINE)
    assert named
    assert [(file, name) for file, name in named if name not in _tests_of(file)] == []


def test_every_line_that_looks_like_a_test_is_read_as_one() -> None:
    assert len(re.findall(r"^- ", _PAGE, re.MULTILINE)) == len(re.findall(r"^- `\S+::\w+`$", _PAGE, re.MULTILINE))
    assert len(_PROMISES) > 20


def test_every_test_file_of_the_engine_stands_behind_a_promise() -> None:
    places = (
        "jobs/test_*.py", "crash/test_*.py", "os/test_*.py", "test_store*.py", "test_migrations.py",
        "actions/test_doctor_timers.py", "test_bench_storm.py", "test_bench_jobs_scale.py",
    )  # fmt: skip
    found = {pattern: list((ROOT / "tests").glob(pattern)) for pattern in places}
    files = {str(path.relative_to(ROOT)) for paths in found.values() for path in paths}

    assert [pattern for pattern, paths in found.items() if not paths] == []
    assert sorted(file for file in files - {"tests/jobs/test_promises.py"} if f"`{file}::" not in _PAGE) == []
