"""Jobs that an older release began are listed, shown, and finished or parked with the reason; never ignored.

`tests/data/state-v1` is the state folder of a release with store schema 1, as it stood when its retrain of Churn was
killed before it trained. It is never edited: every later release must read it.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import pytest

from servicectl.jobs.model import State
from servicectl.jobs.products import is_intact
from servicectl.jobs.runner import Kind, Runner
from tests.parts import ROOT
from tests.parts.estate import Site, outcomes
from tests.parts.estate import estate as estate
from tests.parts.estate import site as site

_FROZEN = ROOT / "tests/data/state-v1"
_JOBS = [  # oldest first: kind, state, outcome, attempts, edges
    ("drift-check", "CANCELLED", "cancelled", 1, ["submit", "claim", "stop"]),
    ("drift-check", "COMPLETED", "no-production-models", 1, ["submit", "claim", "complete"]),
    ("sync-production", "PENDING", None, 0, ["submit", "claim", "stop", "reopen"]),
    ("retrain", "FAILED", "failed", 1, ["submit", "claim", "fail"]),
    ("retrain", "INTERRUPTED", None, 1, ["submit", "claim"]),
]


def _thawed(state: Path) -> Path:
    """A copy of the frozen state folder."""
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(_FROZEN, state)
    packed = state / "servicectl.duckdb.gz"
    (state / "servicectl.duckdb").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    return state


def _listed(site: Site) -> list[tuple[Any, ...]]:
    return [(job["kind"], job["state"], job["outcome"], job["attempts"]) for job in site.jobs()]


def test_every_job_of_the_older_release_is_listed_and_shown_with_all_that_it_recorded(site: Site) -> None:
    _thawed(site.state)

    assert _listed(site) == [job[:-1] for job in _JOBS]
    for job, (*_, edges) in zip(site.jobs(), _JOBS, strict=True):
        shown = site.ok("jobs", "show", job["id"])
        assert [event["edge"] for event in shown["events"]] == edges
        assert all(step["seconds"] is None or step["seconds"] >= 0 for step in shown["steps"])
        assert site.run("jobs", "show", job["id"]).status == 0
    interrupted = site.ok("jobs", "show", site.jobs()[-1]["id"])
    assert [(step["name"], step["state"]) for step in interrupted["steps"]] == [
        ("plan", "COMPLETED"),
        ("snapshot", "COMPLETED"),
        ("train", "RUNNING"),
    ]
    assert interrupted["runs"][0]["by"].startswith("pid ")  # all that was recorded then
    [snapshot] = interrupted["steps"][1]["wrote"]
    assert is_intact({**snapshot, "path": str(site.state / snapshot["path"])})


def test_what_the_older_release_began_is_finished_from_its_first_unfinished_step(site: Site) -> None:
    _thawed(site.state)

    resumed = site.ok("jobs", "resume")

    assert outcomes(resumed) == [("sync-production", "no-production-models"), ("retrain", "promoted")]
    shown = site.ok("jobs", "show", site.jobs()[-1]["id"])
    steps = {step["name"]: (step["attempts"], step["epoch"]) for step in shown["steps"]}
    assert (steps["plan"], steps["snapshot"], steps["train"]) == ((1, 1), (1, 1), (2, 2))
    assert [run["ended"] for run in shown["runs"]] == ["died", "complete"]
    assert site.ok("jobs", "resume")["jobs"] == []


def test_the_older_releases_failure_can_be_retried_from_a_step_and_its_interrupted_job_cancelled(site: Site) -> None:
    _thawed(site.state)
    failed, interrupted = site.jobs()[-2:]

    cancelled = site.ok("jobs", "cancel", interrupted["id"])
    retried = site.ok("jobs", "retry", failed["id"], "--from", "plan")

    assert cancelled["state"] == "CANCELLED"
    assert [job["state"] for job in retried["jobs"]] == ["COMPLETED"]


@pytest.mark.parametrize("harm", ["kind", "version"])
def test_what_cannot_be_finished_any_more_is_parked_with_the_reason_and_stays_on_the_list(
    tmp_path: Path, harm: str
) -> None:
    state = _thawed(tmp_path / "state")
    kinds = {} if harm == "kind" else {name: Kind(name, lambda _: pytest.fail("ran"), 2) for name, *_ in _JOBS}
    later = Runner(state, kinds)

    ran = later.resume()

    parked = {job.kind: job for job in later.table.newest(failed_only=True) if job.needs_operator}
    assert len(ran) == 2
    assert parked.keys() == {"sync-production", "retrain"}
    for job in (one.job for one in ran):
        assert (job.state, job.needs_operator) == (State.FAILED, True)
        assert f"knows no job kind {job.kind!r}" in (job.error or "") or "version 1" in (job.error or "")
        assert f"servicectl jobs retry {job.short_id}" in (job.cure or "")
    assert later.table.unfinished() == []


def test_a_lost_product_of_the_older_release_is_made_again(site: Site) -> None:
    state = _thawed(site.state)
    for snapshot in state.glob("work/*/1/snapshot.parquet"):
        snapshot.unlink()

    site.ok("jobs", "resume")

    shown = site.ok("jobs", "show", site.jobs()[-1]["id"])
    assert shown["outcome"] == "promoted"
    assert [(step["name"], step["attempts"]) for step in shown["steps"]][:2] == [("plan", 1), ("snapshot", 2)]


def test_the_older_store_is_kept_beside_the_migrated_one(tmp_path: Path) -> None:
    state = _thawed(tmp_path / "state")
    before = (state / "servicectl.duckdb").read_bytes()

    assert Runner(state, {}).table.newest() != []

    assert [path.read_bytes() for path in (state / "backups").glob("servicectl-version-1-*.duckdb")] == [before]
