"""The promises of the Makefile, the locks and the documents about them."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.parts import ROOT, program

LOCKS = ("demo", "dev")


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _asked_for(lock: str) -> list[Requirement]:
    project = _project()
    texts = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["demo"],
        *project["build-system"]["requires"],
    ]
    if lock == "dev":
        texts += [*project["dependency-groups"]["dev"], *project["project"]["optional-dependencies"]["xgboost"]]
    return [Requirement(text) for text in texts]


def _pins(lock: str) -> dict[str, list[Requirement]]:
    """Every pin by package; some packages have one pin per range of Python versions."""
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / f"requirements/{lock}.txt").read_text().splitlines():
        if line and not line.startswith((" ", "#", "-")):
            pin = Requirement(line.removesuffix("\\").strip())
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    return pins


def _version(pin: Requirement) -> Version:
    (exact,) = pin.specifier
    assert exact.operator == "=="
    return Version(exact.version)


@pytest.mark.parametrize("lock", LOCKS)
def test_each_dependency_of_the_project_is_pinned_within_its_range(lock: str) -> None:
    pins = _pins(lock)
    for wanted in _asked_for(lock):
        found = pins.get(canonicalize_name(wanted.name), [])
        assert found, f"{wanted.name} is not in requirements/{lock}.txt: make lock"
        for pin in found:
            assert wanted.specifier.contains(_version(pin)), f"{pin} is not in {wanted}: make lock"


def test_the_development_lock_holds_the_pins_of_the_demo_lock() -> None:
    development = {str(pin) for pins in _pins("dev").values() for pin in pins}
    assert {str(pin) for pins in _pins("demo").values() for pin in pins} <= development


@pytest.mark.parametrize("lock", [*LOCKS, "handler", "evidently"])
def test_each_pin_has_hashes_and_the_lock_names_no_address(lock: str) -> None:
    text = (ROOT / f"requirements/{lock}.txt").read_text()
    assert "://" not in text
    assert all(line.startswith("    --hash=sha256:") for line in text.splitlines() if "--" in line)
    entries = re.split(r"\n(?=\S)", text.strip())
    assert [entry for entry in entries if not entry.startswith("#") and "--hash=sha256:" not in entry] == []


def test_the_strict_handler_has_the_estates_engine_and_our_own_redis_client() -> None:
    pins = _pins("handler")
    assert [str(pin) for pin in pins["duckdb"]] == ["duckdb==1.1.3"]
    assert pins["redis"] == _pins("dev")["redis"]


def test_generated_modules_need_no_newer_runtime_than_the_project_promises() -> None:
    floors = {
        requirement.name: min(Version(part.version) for part in requirement.specifier if part.operator == ">=")
        for requirement in map(Requirement, _project()["project"]["dependencies"])
    }
    generated = list((ROOT / "servicectl/_pb").glob("*_pb2*.py"))
    assert generated
    for path in generated:
        text = path.read_text()
        for name, pattern in (
            ("grpcio", r"GRPC_GENERATED_VERSION = '([\d.]+)'"),
            ("protobuf", r"Protobuf Python Version: ([\d.]+)"),
        ):
            for version in re.findall(pattern, text):
                assert Version(version) <= floors[name], f"{path.name} needs {name}>={version}"


def test_each_dependency_is_explained() -> None:
    explained = (ROOT / "docs/dependencies.md").read_text()
    project = _project()
    texts = [
        *project["project"]["dependencies"],
        *(text for extra in project["project"]["optional-dependencies"].values() for text in extra),
        *project["dependency-groups"]["dev"],
    ]
    names = {Requirement(text).name for text in texts}
    assert {name for name in names if not re.search(rf"[| ,]{re.escape(name)}[ ,]", explained)} == set()


def test_make_alone_lists_every_task() -> None:
    listed = subprocess.run([program("make"), "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tasks = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert tasks is not None
    assert re.findall(r"^  make ([a-z]+) ", listed, re.MULTILINE) == [
        name for name in tasks[1].split() if name != "parts"
    ]


def _stand_in(folder: Path, name: str, version: str, has_venv: bool) -> None:
    """A `python` that only knows its version and whether it can make a virtual environment."""
    interpreter = folder / name
    interpreter.write_text(f"#!/bin/sh\ncase $2 in *ensurepip*) exit {int(not has_venv)} ;; esac\necho {version}\n")
    interpreter.chmod(0o755)


def _find_python(folder: Path) -> subprocess.CompletedProcess[str]:
    script = [program("sh"), str(ROOT / "tools/find-python")]
    return subprocess.run(script, env={"PATH": str(folder)}, capture_output=True, text=True)


def test_a_supported_python_is_taken_although_python3_is_an_older_one(tmp_path: Path) -> None:
    _stand_in(tmp_path, "python3", "3.9", has_venv=True)
    _stand_in(tmp_path, "python3.11", "3.11", has_venv=False)
    _stand_in(tmp_path, "python3.12", "3.12", has_venv=True)
    assert _find_python(tmp_path).stdout == f"{tmp_path}/python3.12\n"


def test_without_a_supported_python_the_message_says_what_was_found_and_what_to_do(tmp_path: Path) -> None:
    _stand_in(tmp_path, "python3", "3.9", has_venv=True)
    _stand_in(tmp_path, "python3.13", "3.13", has_venv=False)
    finished = _find_python(tmp_path)
    assert finished.returncode == 1
    assert "Python 3.11, 3.12 or 3.13" in finished.stderr
    assert "python3=3.9" in finished.stderr
    assert "python3.13=3.13(without-venv)" in finished.stderr
    assert "apt-get install python3 python3-venv" in finished.stderr


def test_a_benchmark_prints_one_json_object_with_a_figure_for_each_of_its_limits() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "bench", "startup", "--quick", "--json"],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    figures = json.loads(finished.stdout)
    assert set(figures) == {"help_ratio", "jobs_list_ratio", "idle_resume_ratio"}
    assert all(math.isfinite(value) and value > 0 for value in figures.values())
