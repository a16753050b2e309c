"""The crash matrix itself: it catches what is not idempotent, misses no kind of job, and finds nothing in ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from servicectl.actions import kinds
from servicectl.jobs.model import NewJob
from servicectl.jobs.table import JobTable
from servicectl.selftest.crash_matrix import Matrix, Options, Report
from servicectl.selftest.plan import AtInstant, AtPoint
from servicectl.selftest.scenarios import RESUME, SCENARIOS, Scenario
from servicectl.selftest.site import Site
from tests.parts import ROOT, program

PATIENCE_S = 900.0  # for a busy machine

CAUGHT_AT = ["planted/append/effect"]
PLANTED_POINTS = [
    "planted/claimed", "planted/append/before", "planted/append/effect", "planted/append/recorded",
    "planted/afterwards/before", "planted/afterwards/effect", "planted/complete/before", "planted/complete/recorded",
]  # fmt: skip


def submit_planted(site: Site) -> None:
    JobTable(site.store).submit(NewJob("planted", "planted"), step_schema=1, max_attempts=9)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Report, Path]]:
    """A matrix of one scenario, whose first step appends."""
    program("redis-server")
    kept = tmp_path_factory.mktemp("planted") / "kept"
    options = Options(kills=8, workers=1, seed=0, kept=kept, preload=("tests.crash.planted",))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield (
            Matrix(options, (Scenario("planted", RESUME, arrange=submit_planted),)).run(("planted", "forgotten")),
            kept,
        )


@pytest.mark.parts
def test_a_step_that_is_not_idempotent_is_caught_where_it_is_run_twice_and_nowhere_else(
    planted: tuple[Report, Path],
) -> None:
    report, _ = planted
    assert sorted(str(one.kill) for one in report.killed) == sorted(PLANTED_POINTS)
    assert (report.kills, report.unreached) == (8, [])
    assert [str(one.kill) for one in report.killed if one.problems] == CAUGHT_AT
    assert report.differences == 1
    assert not report.is_clean


@pytest.mark.parts
def test_the_first_difference_is_kept_with_what_was_there_and_how_to_see_it_again(planted: tuple[Report, Path]) -> None:
    report, kept = planted
    told = (kept / "differences.txt").read_text().splitlines()
    assert told[0] == report.reproduction == f"servicectl selftest crash --action planted --at {CAUGHT_AT[0]}"
    assert 'Redis planted.value: undisturbed ["sha256' in "".join(told)
    pictures = [json.loads((kept / name).read_text()) for name in ("undisturbed.json", "killed.json")]
    assert [len(picture["Redis planted"]["value"]) for picture in pictures] == [1, 2]
    assert (kept / "state" / "servicectl.duckdb").is_file()


@pytest.mark.parts
def test_a_kind_of_job_without_a_scenario_fails_the_selftest(planted: tuple[Report, Path]) -> None:
    report, _ = planted
    assert report.kinds_without == ("forgotten",)


def test_nothing_that_a_user_can_type_reaches_the_planted_kind() -> None:
    assert "planted" not in kinds.all_names()
    assert "planted" not in {one.name for one in SCENARIOS}


@pytest.mark.parts
def test_sixty_kills_in_every_action_leave_no_difference(tmp_path: Path) -> None:
    program("redis-server")
    ended = subprocess.run(
        [sys.executable, "-m", "servicectl", "selftest", "crash", "--kills", "60", "--json"],
        cwd=tmp_path,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    told = json.loads(ended.stdout or ended.stderr)
    assert ended.returncode == 0, json.dumps(told, indent=1)
    assert (told["kills"], told["differences"], told["not_reached"]) == (60, 0, [])
    assert told["kinds_without_scenario"] == []
    assert {row["action"] for row in told["actions"]} == {one.name for one in SCENARIOS if not one.at_random_only}
    assert all(row["boundaries_killed_at"] and row["random_kills"] for row in told["actions"])
    assert {kind for row in told["actions"] for kind in row["kinds"]} == set(kinds.all_names())
    assert list(tmp_path.iterdir()) == []


def test_a_report_without_a_single_kill_is_not_clean() -> None:
    assert not Report({}, [], (), 0.0, None, None).is_clean


def test_kills_are_told_apart_by_what_they_are() -> None:
    assert str(AtInstant(184, whole_group=True)) == "184ms:group"
    assert str(AtPoint("publish/swap/effect")) == "publish/swap/effect"


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SERVICECTL_")} | {
        "PYTHONPATH": str(ROOT)
    }
