"""Several writers of one model: whoever loses says so, and what is in production stays one whole version everywhere."""

from __future__ import annotations

import hashlib
import signal
import threading
from collections import Counter

import pytest

from tests.actions.test_publish import beside
from tests.actions.test_rollback import agrees, pointer_of, statuses, twice_published
from tests.actions.test_sync_production import foreign_blob, registered, synced
from tests.parts.estate import ALL_ROWS, MODELS, Saved, Site, outcomes
from tests.parts.wrong_serving import wrong_serving

PRODUCTION = "Model_Churn/Model_Churn_Production.pkl"


def another(site: Site, saved: Saved, name: str) -> Site:
    """One more installation on the same stores."""
    made = beside(site, saved)
    made.folder.rename(site.folder.parent / name)
    return Site(site.estate, site.folder.parent / name, site.url, connection_string=site.connection_string)


@pytest.mark.parametrize("publishers", [2, 5])
def test_of_publishers_that_start_together_one_wins_and_the_others_say_so(
    either_site: Site, second_candidate: Saved, publishers: int
) -> None:
    either_site.restore(second_candidate)
    sites = [another(either_site, second_candidate, f"machine-{number}") for number in range(publishers)]
    running = [site.start("--json", "publish", "Churn", SERVING_CANARY="off") for site in sites]
    for one in running:
        one.wait()
    for site in sites:
        site.run("--json", "jobs", "resume", SERVING_CANARY="off")
    ended = Counter(str(job["outcome"]) for site in sites for job in site.jobs() if job["kind"] == "publish")
    # Each brings the job of the first publish along.
    assert ended == {"published": 1 + publishers, "superseded": publishers - 1}
    agrees(either_site, pointer_of(either_site).version, 2)


@pytest.mark.parametrize("step", ["reserve", "register", "archive", "swap", "point", "switch", "project"])
def test_a_publish_that_lies_dead_is_not_undone_by_what_runs_elsewhere_meanwhile(
    site: Site, second_candidate: Saved, step: str
) -> None:
    site.restore(second_candidate)
    site.estate.rows(0, ALL_ROWS)
    other = beside(site, second_candidate)
    died = site.run("publish", "Churn", crash_at=f"publish/{step}/effect")
    assert died.status == -signal.SIGKILL, died
    generation = pointer_of(site).generation
    for command in (("sync-production",), ("drift-check", "--queue-only"), ("sync-production",)):
        other.run("--json", *command)
        assert pointer_of(site).generation == generation
    assert outcomes(site.ok("jobs", "resume")) == [("publish", "published")]
    agrees(site, "0.1.1", 2)


def test_a_publish_that_is_under_way_is_left_alone_by_its_own_machine_and_followed_by_others(
    site: Site, second_candidate: Saved
) -> None:
    site.restore(second_candidate)
    site.estate.rows(0, ALL_ROWS)
    other = beside(site, second_candidate)
    asked, answer = threading.Event(), threading.Event()

    def hold(name: str) -> bool:
        if name == "Churn":
            asked.set()
            answer.wait(120)
        return False

    with wrong_serving(site.estate.serving.address, hold) as address:
        site.configure(MODELS, serving=address)
        running = site.start("--json", "publish", "Churn", SERVING_TIMEOUT_S="120")
        assert asked.wait(120)
        assert synced(site.ok("sync-production"))["models"] == {"Churn": "busy"}
        site.run("--json", "drift-check", "--queue-only")
        assert synced(other.ok("sync-production"))["models"] == {"Churn": "unchanged"}
        other.run("--json", "drift-check", "--queue-only")
        answer.set()
        ended = running.wait()
    assert outcomes(ended.told) == [("publish", "published")]
    agrees(site, "0.1.1", 2)


def test_a_wrong_answer_that_a_newer_generation_gave_undoes_nothing(site: Site, second_candidate: Saved) -> None:
    site.restore(second_candidate)
    other = beside(site, second_candidate)
    asked, answer = threading.Event(), threading.Event()

    def wrong_once_told(name: str) -> bool:
        if name != "Churn":
            return False
        asked.set()
        return answer.wait(120)

    with wrong_serving(site.estate.serving.address, wrong_once_told) as address:
        site.configure(MODELS, serving=address)
        running = site.start("--json", "publish", "Churn", SERVING_TIMEOUT_S="20")
        assert asked.wait(120)
        other.ok("rollback", "Churn", SERVING_CANARY="off")
        answer.set()
        ended = running.wait()
    assert outcomes(ended.told) == [("publish", "published")]
    assert "generation 3 went into production" in ended.told["jobs"][0]["result"]["serving"]
    assert (pointer_of(site).kind, set(pointer_of(site).withdrawn)) == ("rollback", {"0.1.1"})
    agrees(site, "0.1.0", 3)


def test_a_registry_that_another_job_switched_late_still_follows_the_pointer(
    site: Site, second_candidate: Saved
) -> None:
    site.restore(second_candidate)
    died = site.run("publish", "Churn", crash_at="publish/point/effect")
    assert died.status == -signal.SIGKILL, died
    site.estate.sql("UPDATE model_metadata SET status = 'deprecated' WHERE version = '0.1.0'")
    registered(site, "Churn", "0.0.9")
    assert outcomes(site.ok("jobs", "resume")) == [("publish", "published")]
    assert [one for one in statuses(site) if one[1] == "production"] == [("0.1.1", "production")]
    agrees(site, "0.1.1", 2)


def swapped_in(site: Site, content: bytes, generation: int) -> None:
    """What a publisher leaves that swaps and loses: a body of its own generation."""
    found = site.store.stat(PRODUCTION)
    assert found is not None
    told = {"generation": str(generation), "version": "0.1.9", "job": "of another machine"}
    site.store.replace(PRODUCTION, content, told, found.etag)


def test_the_body_of_a_publisher_that_lost_is_taken_out_again(either_site: Site, second_candidate: Saved) -> None:
    site = either_site
    twice_published(site, second_candidate)
    swapped_in(site, b"came too late", 2)
    site.ok("sync-production")
    agrees(site, "0.1.1", 2)


def test_the_body_of_a_publish_that_never_pointed_is_kept_under_its_own_number_alone(
    either_site: Site, second_candidate: Saved
) -> None:
    site = either_site
    site.restore(second_candidate)
    site.store.create("Model_Churn/Model_Churn_0.1.9.pkl", b"on its way", {})
    swapped_in(site, b"on its way", 2)
    assert outcomes(site.ok("publish", "Churn")) == [("publish", "published")]
    agrees(site, "0.1.10", 2)
    kept = [name for name, digest in site.blobs().items() if digest == hashlib.sha256(b"on its way").hexdigest()]
    assert kept == ["Model_Churn/Model_Churn_0.1.9.pkl"]


def test_a_production_body_that_is_gone_is_put_back(either_site: Site, second_candidate: Saved) -> None:
    site = either_site
    twice_published(site, second_candidate)
    found = site.store.stat(PRODUCTION)
    assert found is not None
    site.store.delete(PRODUCTION, found.etag)
    site.ok("sync-production")
    agrees(site, "0.1.1", 2)


def test_the_body_of_a_publish_under_way_and_one_of_another_program_are_left_alone(
    site: Site, second_candidate: Saved
) -> None:
    twice_published(site, second_candidate)
    swapped_in(site, b"on its way", 3)
    site.ok("sync-production")
    assert site.store.read(PRODUCTION)[0] == b"on its way"
    foreign_blob(site, PRODUCTION, b"another program's")
    site.ok("sync-production")
    assert site.store.read(PRODUCTION)[0] == b"another program's"


def test_a_publisher_that_loses_between_its_swap_and_its_pointer_takes_its_body_out_again(
    site: Site, second_candidate: Saved
) -> None:
    site.restore(second_candidate)
    other = beside(site, second_candidate)
    died = site.run("publish", "Churn", crash_at="publish/swap/effect")
    assert died.status == -signal.SIGKILL, died
    other.ok("publish", "Churn")
    # As if its swap had come after the other's pointer.
    swapped_in(site, b"its own", 2)
    late = site.run("--json", "jobs", "resume")
    assert outcomes(late.told) == [("publish", "superseded")]
    agrees(other, "0.1.2", 2)
