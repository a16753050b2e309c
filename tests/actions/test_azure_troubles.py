"""A publish whose store has bad hours: the trouble has a name, and once it is over the job goes on where it was."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path

import pytest
from azure.storage.blob import generate_container_sas

from tests.parts import free_port
from tests.parts.azure_proxy import Proxy, Refusal, azure_proxy
from tests.parts.azurite import ACCOUNT, KEY, connection_string
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
    proxy.asked.clear()
    return made


def on_commit(method: str, path: str) -> bool:
    """The commit that swaps the production blob."""
    return method == "PUT" and "_Production.pkl" in path and "comp=blocklist" in path


def on_pointer(method: str, path: str) -> bool:
    """The commit that puts the new version into production."""
    return method == "PUT" and "_Production.json" in path and "comp=blocklist" in path


def on_write(method: str, _path: str) -> bool:
    return method == "PUT"


def finished(site: Site, *command: str) -> None:
    assert outcomes(site.ok(*command)) == [("publish", "published")]
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version) == (2, "0.1.1")


def test_a_few_throttled_requests_do_not_fail_a_publish_and_come_no_sooner_than_asked(site: Site, proxy: Proxy) -> None:
    proxy.refusals.append(Refusal(503, "ServerBusy", times=2, matches=on_commit, headers={"Retry-After": "2"}))
    finished(site, "publish", "Churn")
    commits = [one for one in proxy.asked if on_commit(one.method, one.path)]
    assert [one.refused for one in commits] == [True, True, False]
    assert all(after.at_s - before.at_s >= 2 for before, after in pairwise(commits))


def test_an_account_that_asks_for_a_long_pause_is_not_asked_again_before_the_job_is(site: Site, proxy: Proxy) -> None:
    proxy.refusals.append(Refusal(503, "ServerBusy", matches=on_commit, headers={"Retry-After": "30"}))
    ended = site.run("--json", "publish", "Churn")
    assert ended.status == 75, ended
    assert "asks us to come back after 30 s" in ended.told["jobs"][0]["error"]
    assert len([one for one in proxy.asked if on_commit(one.method, one.path)]) == 1
    proxy.refusals.clear()
    finished(site, "jobs", "resume")


@pytest.mark.parametrize(
    ("refusal", "status", "said"),
    [
        (Refusal(503, "ServerBusy", matches=on_write, headers={"Retry-After": "30"}), 75, "503 ServerBusy"),
        (Refusal(503, "ServerBusy", matches=on_commit), 75, "503 ServerBusy"),
        (Refusal(429, "TooManyRequests", matches=on_commit), 75, "429 TooManyRequests"),
        (Refusal(500, "OperationTimedOut", matches=on_pointer), 75, "500 OperationTimedOut"),
        (Refusal(404, "ContainerNotFound"), 78, "has no container"),
        (Refusal(403, "AuthorizationPermissionMismatch", matches=on_write), 78, "refuses our credentials"),
        (Refusal(403, "AuthenticationFailed", matches=on_commit), 78, "refuses our credentials"),
    ],
    ids=[
        "throttled from the start",
        "throttled at the swap",
        "too many requests at the swap",
        "timed out at the pointer",
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
    finished(site, "publish", "Churn")


def test_a_store_that_goes_away_in_the_middle_of_an_upload_is_named_and_the_publish_goes_on(
    site: Site, proxy: Proxy
) -> None:
    connection = (site.folder / "connection").read_text()
    died = site.run("publish", "Churn", crash_at="artifacts/azure/before-commit@2")
    assert died.status == -signal.SIGKILL, died
    (site.folder / "connection").write_text(connection_string(free_port()))
    away = site.run("--json", "jobs", "resume")
    assert away.status == 75, away
    assert "the artifact store is not available: no connection to 127.0.0.1" in away.told["jobs"][0]["error"]
    (site.folder / "connection").write_text(connection)
    finished(site, "jobs", "resume")


def test_a_signature_that_has_expired_is_told_and_a_new_one_goes_on(
    estate: Estate, tmp_path: Path, second_candidate: Saved
) -> None:
    container = estate.azurite.container()
    made = Site(estate, tmp_path / "site", f"azure://{container}", connection_string=estate.azurite.connection_string)
    made.restore(second_candidate)
    died = made.run("publish", "Churn", crash_at="publish/archive/effect")
    assert died.status == -signal.SIGKILL, died
    (made.folder / "connection").write_text(signed(estate, container, timedelta(minutes=-5)))
    ended = made.run("--json", "jobs", "resume")
    assert ended.status == 78, ended
    assert "the shared access signature for 127.0.0.1 expired at" in ended.told["jobs"][0]["error"]
    (made.folder / "connection").write_text(signed(estate, container, timedelta(hours=1)))
    finished(made, "jobs", "retry", made.jobs()[-1]["id"])


def signed(estate: Estate, container: str, lasts: timedelta) -> str:
    """A connection string with a signature for this container, valid until a moment from now."""
    now = datetime.now(UTC)
    signature = generate_container_sas(
        ACCOUNT, container, account_key=KEY, permission="racwdl", start=now - timedelta(days=1), expiry=now + lasts
    )
    return f"BlobEndpoint=http://127.0.0.1:{estate.azurite.port}/{ACCOUNT};SharedAccessSignature={signature}"
