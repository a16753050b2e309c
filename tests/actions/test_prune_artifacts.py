from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from tests.parts.estate import Saved, Site

FOLDER = "Model_Churn/Model_Churn_"


def test_an_upload_that_never_came_into_production_is_swept_and_nothing_else(
    either_site: Site, second_candidate: Saved
) -> None:
    site = either_site
    site.restore(second_candidate)
    other = Site(site.estate, site.folder.parent / "other", site.url, connection_string=site.connection_string)
    shutil.copytree(second_candidate.folder / "state", other.state)
    died = site.run("publish", "Churn", crash_at="publish/register/effect")
    assert died.status == -signal.SIGKILL, died
    # Its job may still carry on.
    assert site.ok("artifacts", "prune", "--days", "0", "--yes")["blobs"] == []
    other.ok("publish", "Churn")
    other.ok("rollback", "Churn")
    site.run("jobs", "resume")
    before = site.blobs()
    assert site.ok("artifacts", "prune", "--yes")["blobs"] == []
    doomed = [f"{FOLDER}0.1.1.{end}" for end in ("canary.json", "json", "parquet", "pkl")]
    for without in ((), ("--dry-run",), ("--dry-run", "--yes")):
        told = site.ok("artifacts", "prune", "--days", "0", *without)
        assert (told["blobs"], told["dry_run"]) == (doomed, True)
    assert site.blobs() == before
    assert site.ok("artifacts", "prune", "--days", "0", "--yes")["blobs"] == doomed
    assert before.keys() - site.blobs().keys() == set(doomed)
    rows = [(row["version"], row["status"]) for row in site.estate.tables()["model_metadata"]]
    assert rows == [("0.1.0", "production"), ("0.1.2", "deprecated")]
    assert site.ok("artifacts", "prune", "--days", "0", "--yes")["blobs"] == []
    # The number stays given, and what was withdrawn can be gone back to.
    assert other.ok("rollback", "Churn", "--to", "0.1.2")["jobs"][0]["outcome"] == "rolled-back"


def test_a_sweep_killed_anywhere_is_finished_by_the_next_and_takes_no_more_than_it_said(
    site: Site, second_candidate: Saved
) -> None:
    site.restore(second_candidate)
    other = Site(site.estate, site.folder.parent / "other", site.url, connection_string=site.connection_string)
    shutil.copytree(second_candidate.folder / "state", other.state)
    site.run("publish", "Churn", crash_at="publish/register/effect")
    other.ok("publish", "Churn")
    other.ok("rollback", "Churn")
    site.run("jobs", "resume")
    before = site.blobs()
    doomed = site.ok("artifacts", "prune", "--days", "0", "--dry-run")["blobs"]
    assert len(doomed) == 4

    killed = [
        site.run("artifacts", "prune", "--days", "0", "--yes", crash_at=f"artifacts/prune/{point}")
        for point in ("rows", "blob", "blob@2")
    ]
    between = before.keys() - site.blobs().keys()
    last = site.ok("artifacts", "prune", "--days", "0", "--yes")["blobs"]

    assert [died.status for died in killed] == [-signal.SIGKILL] * 3, killed
    assert (len(between), between | set(last)) == (3, set(doomed))
    assert before.keys() - site.blobs().keys() == set(doomed)
    rows = [(row["version"], row["status"]) for row in site.estate.tables()["model_metadata"]]
    assert rows == [("0.1.0", "production"), ("0.1.2", "deprecated")]
    assert other.ok("rollback", "Churn", "--to", "0.1.2")["jobs"][0]["outcome"] == "rolled-back"


def test_files_of_killed_writers_are_swept_once_they_are_old(site: Site, published: Saved) -> None:
    site.restore(published)
    folder = Path(site.url.removeprefix("file://")) / "Model_Churn"
    old, new = folder / ".Model_Churn_0.1.1.pkl.abc.tmp", folder / ".Model_Churn_0.1.2.pkl.abc.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert site.ok("artifacts", "prune", "--yes")["temporaries"] == [f"Model_Churn/{old.name}"]
    assert (old.exists(), new.exists()) == (False, True)


def test_archives_from_before_servicectl_are_kept(site: Site, published: Saved) -> None:
    site.restore(published)
    site.store.create(f"{FOLDER}0.0.9.pkl", b"an archive of another program", {})
    assert site.ok("artifacts", "prune", "--days", "0", "--yes")["blobs"] == []
