"""An older pointer that was put back, whoever signed it: whatever remembers a later generation refuses it."""

from __future__ import annotations

import shutil

import pytest

from tests.actions.test_rollback import pointer_of, twice_published
from tests.actions.test_sync_production import foreign_blob
from tests.actions.test_trust import FOLDER, blob
from tests.parts.estate import ALL_ROWS, Saved, Site, outcomes

WITNESSES = {
    "Redis": "Redis was given 3",
    "this machine": "this machine published 3",
    "the history": "its history goes at least to 2",
}
COMMANDS = {
    "sync-production": ("sync-production",),
    "retrain": ("retrain", "Churn"),
    "publish": ("jobs", "resume"),
    "rollback": ("rollback", "Churn"),
}


# A machine that published the later generation has no publish of the earlier one left.
@pytest.mark.parametrize(
    ("witness", "command"),
    [(one, other) for one in WITNESSES for other in COMMANDS if (one, other) != ("this machine", "publish")],
)
def test_an_older_pointer_is_refused_by_each_witness_alone(
    site: Site, second_candidate: Saved, witness: str, command: str
) -> None:
    site.restore(second_candidate)
    old = {end: blob(site, end) for end in ("Production.json", "Production.pkl")}
    if command == "publish":
        # Judged against the generation that comes back.
        site.run("publish", "Churn", crash_at="publish/claimed")
    other = Site(site.estate, site.folder.parent / "other", site.url)
    shutil.copytree(second_candidate.folder / "state", other.state)
    other.ok("publish", "Churn")
    other.ok("rollback", "Churn")
    for end, content in old.items():
        foreign_blob(site, FOLDER + end, content)
    if witness != "Redis":
        site.estate.client.flushall()
    if witness != "the history":
        for found in site.store.list("Model_Churn/"):
            if found.name.endswith(".history.json"):
                site.store.delete(found.name, found.etag)
    site.estate.rows(0, ALL_ROWS)
    before = {**site.picture(), "jobs": None}
    ended = (other if witness == "this machine" else site).run("--json", *COMMANDS[command])
    assert ended.status == 1, ended
    assert f"has generation 1, {WITNESSES[witness]}" in ended.stdout + ended.stderr
    assert {**site.picture(), "jobs": None} == before


def test_a_pointer_whose_own_generation_is_in_the_history_is_a_crash_and_no_attack(
    either_site: Site, second_candidate: Saved
) -> None:
    site = either_site
    twice_published(site, second_candidate)
    # As a publisher leaves it that dies between keeping the pointer and writing the next one.
    site.store.create(f"{FOLDER}000002.history.json", blob(site, "Production.json"), {})
    site.ok("sync-production")
    assert outcomes(site.ok("rollback", "Churn")) == [("rollback", "rolled-back")]
    assert pointer_of(site).generation == 3
