"""One suite for both stores: publishing may not see which of them it runs on."""

from __future__ import annotations

import hashlib
import random
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from servicectl.errors import BadAnswer, IntegrityError
from servicectl.estate.artifacts.protocol import (
    READ_LIMIT,
    AlreadyThere,
    ArtifactStoreError,
    Blob,
    NoSuchBlob,
    PreconditionFailed,
)
from tests.estate.artifacts.places import Container, Place

PRODUCTION = "Model_X/Model_X_Production.pkl"
FIRST = {"job": "job-1", "generation": "1"}
SECOND = {"job": "job-2", "generation": "2"}
THIRD = {"job": "job-3", "generation": "3"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def visible(place: Place, prefix: str = "Model_X/") -> list[str]:
    return [blob.name for blob in place.store.list(prefix)]


# Looking


def test_what_is_not_there_is_none_in_stat_empty_in_a_list_and_an_error_to_readers(
    place: Place, tmp_path: Path
) -> None:
    assert place.store.stat(PRODUCTION) is None
    assert place.store.list("Model_X/") == ()
    with pytest.raises(NoSuchBlob, match=PRODUCTION):
        place.store.read(PRODUCTION)
    with pytest.raises(NoSuchBlob, match=PRODUCTION):
        place.store.download(PRODUCTION, tmp_path / "to")

    assert list(tmp_path.glob("*to*")) == []


def test_a_written_blob_is_described_alike_by_the_write_stat_list_and_read(place: Place) -> None:
    written = place.store.create(PRODUCTION, b"model", FIRST)

    assert (written.name, written.size, written.sha256) == (PRODUCTION, 5, sha256(b"model"))
    assert written.metadata == FIRST
    assert written.modified.utcoffset() is not None
    assert place.store.stat(PRODUCTION) == written
    assert place.store.list("Model_X/") == (written,)
    assert place.store.read(PRODUCTION) == (b"model", written)


def test_an_empty_blob_is_a_blob(place: Place, tmp_path: Path) -> None:
    written = place.store.create(PRODUCTION, b"", {})

    assert place.store.read(PRODUCTION) == (b"", written)
    assert place.store.download(PRODUCTION, tmp_path / "to") == written
    assert (tmp_path / "to").read_bytes() == b""


def test_a_listing_of_model_x_has_all_of_its_blobs_in_order_and_none_of_model_x2(place: Place) -> None:
    for name in ("Model_X2/Model_X2_Production.pkl", "Model_X/b.pkl", "Model_X/a.json", "Model_X/old/c.pkl"):
        place.store.create(name, b"x", {})

    assert visible(place) == ["Model_X/a.json", "Model_X/b.pkl", "Model_X/old/c.pkl"]


@pytest.mark.parametrize("prefix", ["", "Model_X", "/", "../", "Model_X/../Model_Y/", "/etc/", ".servicectl/"])
def test_a_listing_needs_a_folder_inside_the_store(place: Place, prefix: str) -> None:
    with pytest.raises(ArtifactStoreError):
        place.store.list(prefix)


@pytest.mark.parametrize(
    "name", ["", "/a", "../a", "M/../a", "M/.hidden", ".servicectl/a", "M//a", "M/a.", "M/", "a\nb"]
)
def test_a_name_that_leaves_the_store_or_hides_in_it_is_refused_everywhere(
    place: Place, name: str, tmp_path: Path
) -> None:
    store = place.store
    calls: list[Callable[[], object]] = [
        lambda: store.stat(name),
        lambda: store.read(name),
        lambda: store.download(name, tmp_path / "to"),
        lambda: store.create(name, b"x", {}),
        lambda: store.replace(name, b"x", {}, None),
        lambda: store.copy(name, "M/a", "etag"),
        lambda: store.delete(name, "etag"),
    ]
    for call in calls:
        with pytest.raises(ArtifactStoreError, match="not a name"):
            call()


def test_a_blob_of_another_program_has_no_metadata_and_never_a_wrong_digest(place: Place) -> None:
    place.put(PRODUCTION, b"incumbent")

    found = place.store.stat(PRODUCTION)
    assert found is not None
    assert found.metadata == {}
    assert found.sha256 in (None, sha256(b"incumbent"))
    assert place.store.read(PRODUCTION)[1].sha256 == sha256(b"incumbent")


def test_a_blob_that_another_program_overwrites_loses_our_digest_and_metadata(place: Place) -> None:
    ours = place.store.create(PRODUCTION, b"model", FIRST)
    place.put(PRODUCTION, b"other")

    found = place.store.stat(PRODUCTION)
    assert found is not None
    assert found.etag != ours.etag
    assert found.metadata == {}
    assert found.sha256 in (None, sha256(b"other"))


def test_reading_refuses_what_is_too_large_to_be_a_pointer(place: Place) -> None:
    place.store.create(PRODUCTION, bytes(READ_LIMIT + 1), {})

    with pytest.raises(BadAnswer, match=str(READ_LIMIT)):
        place.store.read(PRODUCTION)


def test_forty_megabytes_go_up_from_a_file_and_come_down_to_a_file_unchanged(place: Place, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(40_000_001)
    (tmp_path / "model.pkl").write_bytes(content)

    uploaded = place.store.create(PRODUCTION, tmp_path / "model.pkl", FIRST)
    downloaded = place.store.download(PRODUCTION, tmp_path / "back.pkl")

    assert uploaded.sha256 == sha256(content)
    assert downloaded == uploaded
    assert (tmp_path / "back.pkl").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["back.pkl", "model.pkl"]


def test_a_download_into_a_folder_that_is_missing_says_so(place: Place, tmp_path: Path) -> None:
    place.store.create(PRODUCTION, b"model", {})

    with pytest.raises(ArtifactStoreError, match="cannot be written"):
        place.store.download(PRODUCTION, tmp_path / "nowhere" / "to")


def test_a_source_file_that_is_missing_is_named_and_nothing_is_written(place: Place, tmp_path: Path) -> None:
    writes: list[Callable[[], object]] = [
        lambda: place.store.create(PRODUCTION, tmp_path / "gone", {}),
        lambda: place.store.replace(PRODUCTION, tmp_path / "gone", {}, None),
    ]
    for write in writes:
        with pytest.raises(ArtifactStoreError, match="gone cannot be read"):
            write()

    assert visible(place) == []


def test_checking_a_store_leaves_nothing_behind(place: Place) -> None:
    place.put("Model_X/kept", b"x")
    before = place.everything()

    place.store.check()

    assert place.everything() == before


# Creating


def test_creating_again_with_the_same_content_is_done_already(place: Place) -> None:
    first = place.store.create(PRODUCTION, b"model", FIRST)

    assert place.store.create(PRODUCTION, b"model", SECOND) == first


def test_creating_over_other_content_names_what_is_there_and_leaves_it(place: Place) -> None:
    first = place.store.create(PRODUCTION, b"model", FIRST)

    with pytest.raises(AlreadyThere, match=PRODUCTION) as refused:
        place.store.create(PRODUCTION, b"other", SECOND)

    assert refused.value.existing == first
    assert place.store.read(PRODUCTION) == (b"model", first)


def test_creating_over_a_blob_of_another_program_compares_the_content_itself(place: Place) -> None:
    place.put(PRODUCTION, b"incumbent")

    assert place.store.create(PRODUCTION, b"incumbent", FIRST).size == 9
    with pytest.raises(AlreadyThere):
        place.store.create(PRODUCTION, b"otherwise", FIRST)


def test_bytes_that_are_not_the_promised_ones_never_take_the_name(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "model.pkl"
    source.write_bytes(b"changed since it was checked")
    promised = sha256(b"model")

    with pytest.raises(IntegrityError, match=promised):
        place.store.create(PRODUCTION, source, FIRST, sha256=promised)
    assert place.store.stat(PRODUCTION) is None

    first = place.store.create(PRODUCTION, b"model", FIRST, sha256=promised)
    for etag in (first.etag, "another"):
        with pytest.raises(IntegrityError, match=promised):
            place.store.replace(PRODUCTION, source, SECOND, etag, sha256=promised)
    with pytest.raises(IntegrityError, match=promised):
        place.store.create(PRODUCTION, source, SECOND, sha256=promised)
    assert place.store.read(PRODUCTION) == (b"model", first)


@pytest.mark.parametrize(
    "metadata", [{"Job": "1"}, {"a-b": "1"}, {"job": ""}, {"job": " 1"}, {"job": "ü"}, {"sha256": "x"}]
)
def test_metadata_that_a_container_would_change_is_refused_by_both(place: Place, metadata: dict[str, str]) -> None:
    with pytest.raises(ArtifactStoreError, match="metadata"):
        place.store.create(PRODUCTION, b"model", metadata)


def test_of_many_creators_with_different_content_one_wins_and_the_others_are_told(place: Place) -> None:
    def contend(number: int) -> Blob | AlreadyThere:
        store = place.store
        start.wait()
        try:
            return store.create(PRODUCTION, b"content %d" % number, {})
        except AlreadyThere as refused:
            return refused

    start = threading.Barrier(6)
    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(contend, range(6)))

    winners = [outcome for outcome in outcomes if isinstance(outcome, Blob)]
    assert len(winners) == 1
    assert place.store.stat(PRODUCTION) == winners[0]


# Replacing


def test_replacing_swaps_content_metadata_and_etag(place: Place) -> None:
    first = place.store.create(PRODUCTION, b"old", FIRST)

    second = place.store.replace(PRODUCTION, b"newer", SECOND, first.etag)

    assert second.etag != first.etag
    assert second.metadata == SECOND
    assert place.store.read(PRODUCTION) == (b"newer", second)
    assert place.store.stat(PRODUCTION) == second


def test_replacing_a_blob_of_another_program_is_conditional_too(place: Place) -> None:
    place.put(PRODUCTION, b"incumbent")
    seen = place.store.stat(PRODUCTION)
    assert seen is not None
    place.put(PRODUCTION, b"another incumbent")

    with pytest.raises(PreconditionFailed):
        place.store.replace(PRODUCTION, b"new", FIRST, seen.etag)
    now = place.store.stat(PRODUCTION)
    assert now is not None
    place.store.replace(PRODUCTION, b"new", FIRST, now.etag)

    assert place.store.read(PRODUCTION)[0] == b"new"


def test_replacing_what_must_not_exist_creates_it_once(place: Place) -> None:
    first = place.store.replace(PRODUCTION, b"model", FIRST, None)

    assert place.store.stat(PRODUCTION) == first
    with pytest.raises(PreconditionFailed) as refused:
        place.store.replace(PRODUCTION, b"other", SECOND, None)
    assert refused.value.existing == first


def test_replacing_what_is_gone_says_that_nothing_is_there(place: Place) -> None:
    first = place.store.create(PRODUCTION, b"model", FIRST)
    place.store.delete(PRODUCTION, first.etag)

    with pytest.raises(PreconditionFailed) as refused:
        place.store.replace(PRODUCTION, b"other", SECOND, first.etag)

    assert refused.value.existing is None
    assert place.store.stat(PRODUCTION) is None


def test_a_swap_that_already_happened_is_done(place: Place) -> None:
    first = place.store.create(PRODUCTION, b"old", FIRST)
    second = place.store.replace(PRODUCTION, b"new", SECOND, first.etag)

    assert place.store.replace(PRODUCTION, b"new", SECOND, first.etag) == second


@pytest.mark.parametrize("changed", [{"job": "job-9"}, {"generation": "9"}])
def test_the_same_content_by_another_job_or_generation_is_not_our_swap(place: Place, changed: dict[str, str]) -> None:
    first = place.store.create(PRODUCTION, b"old", FIRST)
    second = place.store.replace(PRODUCTION, b"new", SECOND, first.etag)

    with pytest.raises(PreconditionFailed) as refused:
        place.store.replace(PRODUCTION, b"new", SECOND | changed, first.etag)

    assert refused.value.existing == second


def test_an_old_etag_stays_refused_after_a_rollback_to_the_content_it_stood_for(place: Place) -> None:
    first = place.store.create(PRODUCTION, b"A", FIRST)
    second = place.store.replace(PRODUCTION, b"B", SECOND, first.etag)
    third = place.store.replace(PRODUCTION, b"A", FIRST, second.etag)

    assert third.etag not in (first.etag, second.etag)
    with pytest.raises(PreconditionFailed):
        place.store.replace(PRODUCTION, b"C", THIRD, first.etag)


def test_replacing_by_equal_content_changes_the_etag(place: Place) -> None:
    first = place.store.create(PRODUCTION, b"A", FIRST)

    assert place.store.replace(PRODUCTION, b"A", SECOND, first.etag).etag != first.etag


@pytest.mark.parametrize("repetition", range(3))
def test_of_many_replacers_with_one_etag_exactly_one_wins(place: Place, repetition: int) -> None:
    def contend(number: int) -> Blob | PreconditionFailed:
        store = place.store
        start.wait()
        try:
            return store.replace(PRODUCTION, b"content %d" % number, {"job": f"job-{number}"}, first.etag)
        except PreconditionFailed as refused:
            return refused

    first = place.store.create(PRODUCTION, b"old", FIRST)
    start = threading.Barrier(6)
    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(contend, range(6)))

    winners = [outcome for outcome in outcomes if isinstance(outcome, Blob)]
    assert len(winners) == 1
    assert place.store.stat(PRODUCTION) == winners[0]


def test_a_reader_beside_a_writer_always_gets_one_whole_version(place: Place, tmp_path: Path) -> None:
    versions = [bytes([number]) * (100_000 + number) for number in range(25)]
    digests = {sha256(version) for version in versions}
    present = place.store.create(PRODUCTION, versions[0], {})
    stop = threading.Event()

    def read() -> list[tuple[str | None, str]]:
        store, seen = place.store, []
        while not stop.is_set():
            blob = store.download(PRODUCTION, tmp_path / "read")
            seen.append((blob.sha256, sha256((tmp_path / "read").read_bytes())))
        return seen

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            for version in versions[1:]:
                present = place.store.replace(PRODUCTION, version, {}, present.etag)
        finally:
            stop.set()
        seen = reading.result()

    assert seen
    assert all(told == written and written in digests for told, written in seen)


# Copying and deleting


def test_a_copy_has_the_content_digest_and_metadata_of_its_source(place: Place) -> None:
    source = place.store.create(PRODUCTION, b"model", FIRST)

    copied = place.store.copy(PRODUCTION, "Model_X/Model_X_0.1.0.pkl", source.etag)

    assert (copied.sha256, copied.size, copied.metadata) == (source.sha256, 5, FIRST)
    assert place.store.read("Model_X/Model_X_0.1.0.pkl") == (b"model", copied)
    assert place.store.stat(PRODUCTION) == source


def test_copying_again_is_done_and_over_other_content_refused(place: Place) -> None:
    source = place.store.create(PRODUCTION, b"model", FIRST)
    copied = place.store.copy(PRODUCTION, "Model_X/a.pkl", source.etag)
    other = place.store.create("Model_X/b.pkl", b"other", {})

    assert place.store.copy(PRODUCTION, "Model_X/a.pkl", source.etag) == copied
    with pytest.raises(AlreadyThere) as refused:
        place.store.copy(PRODUCTION, "Model_X/b.pkl", source.etag)
    assert refused.value.existing == other


def test_a_blob_of_another_program_is_copied_and_recognised_by_its_content(place: Place) -> None:
    place.put(PRODUCTION, b"incumbent")
    place.put("Model_X/b.pkl", b"different")
    source = place.store.stat(PRODUCTION)
    assert source is not None

    place.store.copy(PRODUCTION, "Model_X/a.pkl", source.etag)
    place.store.copy(PRODUCTION, "Model_X/a.pkl", source.etag)

    assert place.store.read("Model_X/a.pkl")[0] == b"incumbent"
    with pytest.raises(AlreadyThere):
        place.store.copy(PRODUCTION, "Model_X/b.pkl", source.etag)


def test_a_source_that_changed_or_is_gone_is_not_copied(place: Place) -> None:
    first = place.store.create(PRODUCTION, b"old", FIRST)
    second = place.store.replace(PRODUCTION, b"new", SECOND, first.etag)

    with pytest.raises(PreconditionFailed) as refused:
        place.store.copy(PRODUCTION, "Model_X/a.pkl", first.etag)
    assert refused.value.existing == second
    with pytest.raises(NoSuchBlob):
        place.store.copy("Model_X/none.pkl", "Model_X/a.pkl", first.etag)
    assert visible(place) == [PRODUCTION]


def test_a_copy_with_a_name_that_needs_quoting_arrives(place: Place) -> None:
    source = place.store.create("Model_X/a b+c%20#é.pkl", b"model", {})

    place.store.copy("Model_X/a b+c%20#é.pkl", "Model_X/copy.pkl", source.etag)

    assert visible(place) == ["Model_X/a b+c%20#é.pkl", "Model_X/copy.pkl"]
    assert place.store.read("Model_X/copy.pkl")[0] == b"model"


def test_deleting_is_conditional_and_an_absent_blob_is_done(place: Place) -> None:
    first = place.store.create(PRODUCTION, b"old", FIRST)
    second = place.store.replace(PRODUCTION, b"new", SECOND, first.etag)

    with pytest.raises(PreconditionFailed) as refused:
        place.store.delete(PRODUCTION, first.etag)
    assert refused.value.existing == second
    place.store.delete(PRODUCTION, second.etag)
    place.store.delete(PRODUCTION, second.etag)
    place.store.delete("Model_Never/was.pkl", second.etag)

    assert place.store.stat(PRODUCTION) is None


# Dying


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_creator_killed_anywhere_leaves_nothing_or_the_whole_and_running_again_finishes(
    place: Place, at: int
) -> None:
    point = place.crash_points["create"][at]

    died = place.run("create", crash_at=point, name=PRODUCTION, source="model", metadata=FIRST)

    assert died.returncode == -signal.SIGKILL, died.stderr
    assert visible(place) == ([PRODUCTION] if at == 2 else [])
    again = place.run("create", name=PRODUCTION, source="model", metadata=FIRST)
    assert again.returncode == 0, again.stderr
    assert visible(place) == [PRODUCTION]
    content, blob = place.store.read(PRODUCTION)
    assert (content, blob.metadata) == (b"model", FIRST)
    assert place.store.stat(PRODUCTION) == blob


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_replacer_killed_anywhere_leaves_old_or_new_and_running_again_finishes(place: Place, at: int) -> None:
    old = place.store.create(PRODUCTION, b"old", FIRST)
    point = place.crash_points["replace"][at]

    died = place.run("replace", crash_at=point, name=PRODUCTION, source="new", metadata=SECOND, if_match=old.etag)

    assert died.returncode == -signal.SIGKILL, died.stderr
    content, blob = place.store.read(PRODUCTION)
    assert (content, blob.metadata) == ((b"new", SECOND) if at == 2 else (b"old", FIRST))
    assert visible(place) == [PRODUCTION]
    again = place.run("replace", name=PRODUCTION, source="new", metadata=SECOND, if_match=old.etag)
    assert again.returncode == 0, again.stderr
    content, blob = place.store.read(PRODUCTION)
    assert (content, blob.metadata, blob.etag) == (b"new", SECOND, again.stdout.strip())


def test_a_dead_replacer_does_not_hinder_another_one(place: Place) -> None:
    old = place.store.create(PRODUCTION, b"old", FIRST)
    for point in place.crash_points["replace"][:2]:
        place.run("replace", crash_at=point, name=PRODUCTION, source="new", metadata=SECOND, if_match=old.etag)

    place.store.replace(PRODUCTION, b"another", THIRD, old.etag)

    assert place.store.read(PRODUCTION)[0] == b"another"
    with pytest.raises(PreconditionFailed):
        place.store.replace(PRODUCTION, b"new", SECOND, old.etag)


def test_the_container_variant_really_talks_to_azurite(request: pytest.FixtureRequest, place: Place) -> None:
    """Guards the fixture: a suite that ran twice on a folder would prove nothing about the container."""
    place.store.create(PRODUCTION, b"model", FIRST)

    kind = "AzureStore" if isinstance(place, Container) else "LocalStore"
    assert type(place.store).__name__ == kind
    assert PRODUCTION in place.everything()
