from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from servicectl.clock import Clock
from servicectl.errors import ConfigError, IntegrityError, PartyUnavailable
from servicectl.estate.artifacts.local import LocalStore
from servicectl.estate.artifacts.protocol import ArtifactStore, PreconditionFailed
from tests.estate.artifacts.places import Folder
from tests.parts import ROOT, missing

PRODUCTION = "Model_X/Model_X_Production.pkl"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Hands:
    """A clock whose time passes only when it is turned or slept on."""

    def __init__(self) -> None:
        self.moment = NOON

    def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)

    def seconds(self) -> float:
        return self.moment.timestamp()

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.moment, monotonic=self.seconds, sleep=self.sleep)


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


def test_a_stopped_clock_still_gives_every_write_its_own_etag(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store", Hands().clock)
    blob, etags = store.create(PRODUCTION, b"A", {}), set()
    for _ in range(20):
        etags.add(blob.etag)
        blob = store.replace(PRODUCTION, b"A", {}, blob.etag)

    assert len(etags) == 20
    assert blob.modified - NOON < timedelta(seconds=1)


def test_a_clock_set_back_still_gives_every_write_a_later_time(tmp_path: Path) -> None:
    hands = Hands()
    store = LocalStore(tmp_path / "store", hands.clock)
    first = store.create(PRODUCTION, b"A", {})
    hands.moment -= timedelta(days=1)

    second = store.replace(PRODUCTION, b"B", {"job": "j"}, first.etag)

    assert second.modified >= first.modified
    assert store.stat(PRODUCTION) == second
    with pytest.raises(PreconditionFailed):
        store.replace(PRODUCTION, b"C", {}, first.etag)


def test_a_lock_that_a_stopped_process_holds_ends_the_wait_with_try_again(tmp_path: Path) -> None:
    hands = Hands()
    store = LocalStore(tmp_path / "store", hands.clock)
    store.create("Model_X/other", b"", {})
    with (tmp_path / "store/.servicectl/locks/Model_X.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        with pytest.raises(PartyUnavailable, match="has held its lock"):
            store.create(PRODUCTION, b"A", {})
        store.create("Model_X2/free", b"A", {})

    assert hands.moment > NOON
    assert store.stat(PRODUCTION) is None
    assert [path.name for path in (tmp_path / "store/Model_X").iterdir()] == ["other"]


def test_what_a_killed_writer_leaves_is_hidden_and_its_record_goes_with_the_next_write(folder: Folder) -> None:
    old = folder.store.create(PRODUCTION, b"old", {})
    for point in ("artifacts/local/mid-write", "artifacts/local/before-rename"):
        folder.run("replace", crash_at=point, name=PRODUCTION, source="new", metadata={}, if_match=old.etag)
    left = [path.name for path in (folder.root / "Model_X").iterdir()]
    assert len(left) == 3
    assert [name for name in left if not name.startswith(".")] == ["Model_X_Production.pkl"]

    folder.store.replace(PRODUCTION, b"new", {}, old.etag)

    records = folder.root / ".servicectl/records/Model_X/.Model_X_Production.pkl"
    assert len(list(records.iterdir())) == 1


def test_a_file_touched_or_rewritten_by_hand_is_described_by_what_it_is(folder: Folder) -> None:
    folder.store.create(PRODUCTION, b"model", {"job": "j"})
    with (folder.root / PRODUCTION).open("r+b") as file:
        file.write(b"M")

    found = folder.store.stat(PRODUCTION)
    assert found is not None
    assert found.sha256 == hashlib.sha256(b"Model").hexdigest()
    assert found.metadata == {}


def test_a_damaged_record_costs_metadata_and_never_the_blob(folder: Folder) -> None:
    folder.store.create(PRODUCTION, b"model", {"job": "j"})
    (record,) = (folder.root / ".servicectl/records/Model_X/.Model_X_Production.pkl").iterdir()
    for damage in (b"", b"[]", b'{"size": 5}', b"\xff"):
        record.write_bytes(damage)

        found = folder.store.stat(PRODUCTION)
        assert found is not None
        assert found.sha256 == hashlib.sha256(b"model").hexdigest()


def test_rotten_bytes_are_told_by_a_download_and_never_archived(folder: Folder, tmp_path: Path) -> None:
    written = folder.store.create(PRODUCTION, b"model", {})
    path = folder.root / PRODUCTION
    times = path.stat()
    path.write_bytes(b"m0del")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert folder.store.download(PRODUCTION, tmp_path / "to").sha256 == hashlib.sha256(b"m0del").hexdigest()
    with pytest.raises(IntegrityError, match=PRODUCTION):
        folder.store.copy(PRODUCTION, "Model_X/a", written.etag)
    assert [blob.name for blob in folder.store.list("Model_X/")] == [PRODUCTION]


def test_a_folder_whose_parent_is_missing_is_a_configuration_error_in_every_method(tmp_path: Path) -> None:
    for call in methods(LocalStore(tmp_path / "missing/store"), tmp_path):
        with pytest.raises(ConfigError, match="missing is not a folder"):
            call()

    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_folders_place_is_a_configuration_error_in_every_method(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    for call in methods(LocalStore(tmp_path / "store"), tmp_path):
        with pytest.raises(ConfigError, match="not a folder"):
            call()


def test_a_store_that_is_new_is_checked_without_making_it(tmp_path: Path) -> None:
    LocalStore(tmp_path / "store").check()

    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_account_is_a_configuration_error_that_names_it(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        account, home = 65534, Path("/tmp")
        folder = home / f"servicectl-test-{os.getpid()}"
        folder.mkdir(mode=0o755)
    else:
        account, folder = os.geteuid(), tmp_path / "store"
        folder.mkdir(mode=0o555)
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from servicectl.errors import ConfigError\n"
        "from servicectl.estate.artifacts.local import LocalStore\n"
        "account, store = int(sys.argv[1]), LocalStore(Path(sys.argv[2]))\n"
        "if os.geteuid() != account: os.setuid(account)\n"
        "for call in (store.check, lambda: store.create('M/a', b'x', {})):\n"
        "    try: call()\n"
        "    except ConfigError as error: print(error)\n"
    )
    try:
        ran = subprocess.run(
            [sys.executable, "-c", script, str(account), str(folder)], cwd=ROOT, capture_output=True, text=True
        )
    finally:
        folder.rmdir()

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count(f"the artifact store in {folder} cannot be used") == 2


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        missing("a small file system", "only root can mount one")
    place = tmp_path / "tiny"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        missing("a small file system", mounted.stderr.strip())
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.root
def test_a_full_disk_keeps_the_old_blob_leaves_no_rest_and_asks_for_room(tiny: Path) -> None:
    store = LocalStore(tiny / "store")
    old = store.create(PRODUCTION, b"old", {"job": "j"})

    with pytest.raises(PartyUnavailable, match="No space left") as refused:
        store.replace(PRODUCTION, bytes(2_000_000), {}, old.etag)

    assert "make room" in refused.value.cure
    assert store.stat(PRODUCTION) == old
    assert [path.name for path in (tiny / "store/Model_X").iterdir()] == ["Model_X_Production.pkl"]
