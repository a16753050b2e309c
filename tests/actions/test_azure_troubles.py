"""A publish whose store has bad hours: the trouble has a name, and once it is over the job goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from tests.parts.azure_proxy import Proxy, Refusal, azure_proxy
from tests.parts.azurite import connection_string
from tests.parts.estate import Estate, Saved, Site, outcomes

pytestmark = pytest.mark.parts


@pytest.fixture
def proxy(estate: Estate) -> Iterator[Proxy]:
    with azure_proxy(estate.azurite.port) as running:
        yield running


@pytest.fixture
def site(estate: Estate, proxy: Proxy, tmp_path: Path, second_candidate: Saved) -> Site:
    """Churn 0.1.0 in production, a better challenger waiting, and the store behind the proxy."""
    url = f"azure://{estate.azurite.container()}"
    made = Site(estate, tmp_path / "site", url, connection_string=connection_string(proxy.port))
    made.restore(second_candidate)
    return made


def on_commit(method: str, path: str) -> bool:
    """The commit that swaps the production blob."""
    return method == "PUT" and "_Production.pkl" in path and "comp=blocklist" in path


def on_write(method: str, _path: str) -> bool:
    return method == "PUT"


def finished(site: Site, *command: str) -> None:
    assert outcomes(site.ok(*command)) == [("publish", "published")]
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version) == (2, "0.1.1")


def test_a_few_throttled_requests_do_not_fail_a_publish(site: Site, proxy: Proxy) -> None:
    refusal = Refusal(503, "ServerBusy", times=2, matches=on_commit, headers={"Retry-After": "1"})
    proxy.refusals.append(refusal)
    finished(site, "publish", "Churn")
    assert refusal.met == 2


@pytest.mark.parametrize(
    ("refusal", "status", "said"),
    [
        (Refusal(503, "ServerBusy", matches=on_write, headers={"Retry-After": "30"}), 75, "503 ServerBusy"),
        (Refusal(503, "ServerBusy", matches=on_commit, headers={"Retry-After": "30"}), 75, "503 ServerBusy"),
        (Refusal(404, "ContainerNotFound"), 78, "has no container"),
        (Refusal(403, "AuthorizationPermissionMismatch", matches=on_write), 78, "refuses our credentials"),
        (Refusal(403, "AuthenticationFailed", matches=on_commit), 78, "refuses our credentials"),
    ],
    ids=[
        "throttled from the start",
        "throttled at the swap",
        "container gone",
        "no permission",
        "credentials expired at the swap",
    ],
)
def test_a_trouble_is_named_and_the_publish_goes_on_after_it(
    site: Site, proxy: Proxy, refusal: Refusal, status: int, said: str
) -> None:
    before = site.served()
    proxy.refusals.append(refusal)
    ended = site.run("--json", "publish", "Churn")
    assert ended.status == status, ended
    assert said in ended.stdout + ended.stderr
    proxy.refusals.clear()
    assert site.served() == before
    pointer = site.pointer()
    assert pointer is not None
    assert pointer.generation == 1
    if site.jobs()[-1]["kind"] != "publish":
        finished(site, "publish", "Churn")
    elif status == 75:
        finished(site, "jobs", "resume")
    else:
        finished(site, "jobs", "retry", site.jobs()[-1]["id"])


@pytest.mark.parametrize(("hours", "said"), [(-2, "120 minutes ahead of"), (2, "120 minutes behind")])
def test_a_wrong_clock_is_told_as_such(site: Site, proxy: Proxy, hours: int, said: str) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=hours), usegmt=True)
    proxy.refusals.append(Refusal(403, "AuthenticationFailed", headers={"Date": date}))
    ended = site.run("--json", "publish", "Churn")
    assert ended.status == 78, ended
    assert said in ended.stdout + ended.stderr
    proxy.refusals.clear()
