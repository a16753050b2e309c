from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from azure.storage.blob import BlobBlock, BlobClient, generate_container_sas

from servicectl.errors import Busy, ConfigError, ExitStatus, PartyUnavailable, ServicectlError
from servicectl.estate.artifacts import azure, open_store
from servicectl.estate.artifacts.azure_errors import asked_to_wait_s
from servicectl.estate.artifacts.protocol import CHUNK, AlreadyThere, ArtifactStore, ArtifactStoreError
from tests.estate.artifacts.places import Container
from tests.parts import free_port
from tests.parts.azurite import ACCOUNT, KEY, connection_string

PRODUCTION = "Model_X/Model_X_Production.pkl"

pytestmark = pytest.mark.parts


def methods(store: ArtifactStore, tmp_path: Path) -> list[Callable[[], object]]:
    return [
        store.check,
        lambda: store.stat(PRODUCTION),
        lambda: store.list("Model_X/"),
        lambda: store.read(PRODUCTION),
        lambda: store.download(PRODUCTION, tmp_path / "to"),
        lambda: store.create(PRODUCTION, b"x", {}),
        lambda: store.replace(PRODUCTION, b"x", {}, None),
        lambda: store.copy(PRODUCTION, "Model_X/a", "etag"),
        lambda: store.delete(PRODUCTION, "etag"),
    ]


def signature(container: Container, permission: str, expires: timedelta) -> str:
    sas = generate_container_sas(
        ACCOUNT, container.name, KEY, permission=permission, expiry=datetime.now(UTC) + expires
    )
    return f"BlobEndpoint=http://127.0.0.1:{container.server.port}/{ACCOUNT};SharedAccessSignature={sas}"


def assert_keeps_secrets(error: ServicectlError, *secrets: str) -> None:
    for secret in (KEY, "sig=", "AccountKey", *secrets):
        assert secret not in str(error)


@pytest.fixture
def client(container: Container) -> BlobClient:
    return container.server.service().get_blob_client(container.name, PRODUCTION)


def test_a_store_that_is_away_ends_every_method_with_try_again_and_keeps_the_key(tmp_path: Path) -> None:
    store = open_store("azure://models", connection_string(free_port()))

    def refusal(call: Callable[[], object]) -> ServicectlError:
        with pytest.raises(
            PartyUnavailable, match=r"artifact store is not available: no connection to 127\.0\.0\.1"
        ) as away:
            call()
        return away.value

    calls = methods(store, tmp_path)
    with ThreadPoolExecutor(len(calls)) as pool:  # each tries for about two seconds
        refusals = list(pool.map(refusal, calls))

    for error in refusals:
        assert error.exit_status is ExitStatus.TRY_AGAIN
        assert error.cure
        assert_keeps_secrets(error)


def test_a_missing_container_is_a_configuration_error_in_every_method(container: Container, tmp_path: Path) -> None:
    store = open_store("azure://not-there", container.connection_string)
    for call in methods(store, tmp_path):
        with pytest.raises(ConfigError, match="has no container not-there"):
            call()


def test_a_wrong_key_is_a_configuration_error_in_every_method(container: Container, tmp_path: Path) -> None:
    wrong = "A" + KEY[1:]
    store = open_store(container.url, connection_string(container.server.port, wrong))
    for call in methods(store, tmp_path):
        with pytest.raises(ConfigError, match="refuses our credentials") as refused:
            call()

        assert_keeps_secrets(refused.value, wrong)


def test_a_signature_that_expired_is_named_as_such(container: Container) -> None:
    store = open_store(container.url, signature(container, "racwdl", -timedelta(hours=1)))

    with pytest.raises(ConfigError, match=r"expired at \d{4}-") as refused:
        store.stat(PRODUCTION)

    assert_keeps_secrets(refused.value)


@pytest.mark.parametrize("permission", ["rl", "racwl", "acwd"])
def test_checking_finds_a_permission_that_a_publish_would_miss(container: Container, permission: str) -> None:
    store = open_store(container.url, signature(container, permission, timedelta(hours=1)))

    with pytest.raises(ConfigError, match="permissions") as refused:
        store.check()

    assert_keeps_secrets(refused.value)


def test_a_signature_with_all_permissions_publishes_and_copies(container: Container) -> None:
    store = open_store(container.url, signature(container, "racwdl", timedelta(hours=1)))
    store.check()
    first = store.create(PRODUCTION, b"old", {"job": "j"})

    copied = store.copy(PRODUCTION, "Model_X/a.pkl", first.etag)
    second = store.replace(PRODUCTION, b"new", {}, first.etag)
    store.delete(PRODUCTION, second.etag)

    assert store.list("Model_X/") == (copied,)
    assert copied.sha256 == first.sha256


@pytest.mark.parametrize("id_length", [20, 64])
def test_blocks_that_a_dead_program_left_do_not_block_the_name(
    container: Container, client: BlobClient, id_length: int
) -> None:
    old = container.store.create(PRODUCTION, b"old", {})
    client.stage_block("x" * id_length, b"left behind")

    container.store.replace(PRODUCTION, b"new", {}, old.etag)

    assert container.store.read(PRODUCTION)[0] == b"new"


def test_blocks_with_ids_too_short_to_join_are_named(container: Container, client: BlobClient) -> None:
    container.store.create(PRODUCTION, b"old", {})
    client.stage_block("abc", b"left behind")
    found = container.store.stat(PRODUCTION)
    assert found is not None

    with pytest.raises(ArtifactStoreError, match="unfinished blocks"):
        container.store.replace(PRODUCTION, b"new", {}, found.etag)

    assert container.store.read(PRODUCTION)[0] == b"old"


def test_a_peer_that_commits_in_the_middle_of_our_upload_wins_whole(
    container: Container, client: BlobClient, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "slow")
    refusals: list[AlreadyThere] = []

    def create() -> None:
        with pytest.raises(AlreadyThere) as refused:
            container.store.create(PRODUCTION, tmp_path / "slow", {})
        refusals.append(refused.value)

    ours = threading.Thread(target=create)
    ours.start()
    with (tmp_path / "slow").open("wb") as pipe:
        pipe.write(bytes(CHUNK))
        pipe.flush()
        limit = time.monotonic() + 30
        while not uncommitted(container, client):
            assert time.monotonic() < limit, "our first block never arrived"
        peers = container.store.create(PRODUCTION, b"peer", {})
        pipe.write(b"the rest")
    ours.join()

    assert [refusal.existing for refusal in refusals] == [peers]
    assert container.store.read(PRODUCTION) == (b"peer", peers)


def uncommitted(container: Container, client: BlobClient) -> list[BlobBlock]:
    with container.server.service() as service:
        found = service.get_container_client(container.name).list_blobs(include=["uncommittedblobs"])
        return client.get_block_list("uncommitted")[1] if list(found) else []


def test_a_blob_that_somebody_leased_is_busy(container: Container, client: BlobClient) -> None:
    old = container.store.create(PRODUCTION, b"old", {})
    lease = client.acquire_lease(15)
    try:
        with pytest.raises(Busy, match=PRODUCTION):
            container.store.replace(PRODUCTION, b"new", {}, old.etag)
    finally:
        lease.release()


def test_what_the_server_cannot_copy_goes_through_us_with_the_same_result(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(CHUNK + 1)
    source = container.store.create(PRODUCTION, content, {"job": "j"})
    monkeypatch.setattr(azure, "_SERVER_COPY_LIMIT", CHUNK)

    copied = container.store.copy(PRODUCTION, "Model_X/a.pkl", source.etag)

    assert (copied.sha256, copied.metadata) == (source.sha256, {"job": "j"})
    assert container.store.read("Model_X/a.pkl") == (content, copied)
    assert container.store.copy(PRODUCTION, "Model_X/a.pkl", source.etag) == copied


def test_a_blob_whose_recorded_digest_is_wrong_is_told_by_a_download(
    container: Container, client: BlobClient, tmp_path: Path
) -> None:
    container.store.create(PRODUCTION, b"model", {})
    client.set_blob_metadata({"sha256": "0" * 64})

    downloaded = container.store.download(PRODUCTION, tmp_path / "to")

    assert downloaded.sha256 == "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4"


@pytest.mark.parametrize(
    ("told", "at_least", "at_most"),
    [("7", 7, 7), ("", 0, 0), (None, 0, 0), ("soon", 0, 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0), ("+60", 50, 60)],
)
def test_the_pause_that_an_account_asks_for_is_read_as_a_number_or_as_a_moment(
    told: str | None, at_least: float, at_most: float
) -> None:
    if told and told.startswith("+"):
        told = format_datetime(datetime.now(UTC) + timedelta(seconds=int(told)), usegmt=True)

    assert at_least <= asked_to_wait_s(SimpleNamespace(headers={"Retry-After": told} if told else {})) <= at_most
