"""`models at` believes the dates of pointers: they say when each was written, and only rise."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta

import pytest

from servicectl.actions import publish
from servicectl.actions.world import World
from servicectl.clock import SYSTEM, Clock
from servicectl.config import load
from tests.actions.test_rollback import pointer_of
from tests.parts.estate import Saved, Site, outcomes


def at_work(site: Site, ahead: timedelta) -> World:
    """This installation on a machine whose clock is so far ahead."""
    clock = Clock(lambda: datetime.now(UTC) + ahead, SYSTEM.monotonic, SYSTEM.sleep)
    return World(load(site.config), clock=clock)


def version_at(site: Site, moment: datetime) -> str:
    return str(site.ok("models", "at", moment.isoformat(), "Churn")["models"]["Churn"]["version"])


@pytest.mark.parametrize("step", ["archive/recorded", "swap/effect", "swap/recorded"])
def test_a_publish_that_is_resumed_a_day_later_is_dated_then(
    either_site: Site, second_candidate: Saved, step: str
) -> None:
    site = either_site
    site.restore(second_candidate)
    died = site.run("publish", "Churn", crash_at=f"publish/{step}")
    assert died.status == -signal.SIGKILL, died
    killed = datetime.now(UTC)
    [ran] = at_work(site, timedelta(days=1)).runner.resume()
    assert ran.job.outcome == "published"
    assert pointer_of(site).published_at > killed + timedelta(hours=23)
    assert version_at(site, killed + timedelta(hours=12)) == "0.1.0"
    assert version_at(site, killed + timedelta(days=2)) == "0.1.1"


def test_a_pointer_that_was_written_before_the_crash_keeps_its_date(either_site: Site, second_candidate: Saved) -> None:
    site = either_site
    site.restore(second_candidate)
    died = site.run("publish", "Churn", crash_at="publish/point/effect")
    assert died.status == -signal.SIGKILL, died
    before = pointer_of(site)
    at_work(site, timedelta(days=1)).runner.resume()
    assert pointer_of(site) == before


def test_a_machine_whose_clock_is_behind_does_not_date_its_change_before_the_one_that_it_replaces(
    site: Site, second_candidate: Saved
) -> None:
    site.restore(second_candidate)
    world = at_work(site, timedelta(days=1))
    [ran] = publish.start(world, "Churn")
    assert ran.job.outcome == "published"
    ahead = pointer_of(site).published_at
    assert outcomes(site.ok("rollback", "Churn")) == [("rollback", "rolled-back")]
    assert pointer_of(site).published_at == ahead + timedelta(microseconds=1)
    assert [version_at(site, ahead + timedelta(microseconds=step)) for step in (0, 1)] == ["0.1.1", "0.1.0"]
