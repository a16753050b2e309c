"""The job store's file: made whole, opened by one at a time, never deleted, every trouble told with a cure."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from servicectl import store_file, store_fold
from servicectl.errors import Busy, ServicectlError, StoreDamaged, StoreDenied, StoreError, StoreFull
from servicectl.store import SCHEMA_VERSION, Store
from tests.parts import ROOT, missing
from tests.parts.jobs import Start, job_programs


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with job_programs(tmp_path) as begin:
        yield begin


def _insert(store: Store, name: str) -> None:
    with store.transaction() as connection:
        connection.execute("INSERT INTO requests VALUES ('made', ?, uuid())", [name])


def _names(store: Store) -> list[str]:
    with store.reading() as connection:
        assert connection is not None
        return [name for (name,) in connection.execute("SELECT request_id FROM requests ORDER BY 1").fetchall()]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path, lock_wait_s=0.2)
    _insert(store, "first")
    return store


def test_what_a_transaction_wrote_is_read_back_and_nobody_else_may_read_the_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "new folder")

    _insert(store, "one")

    assert _names(Store(tmp_path / "a" / "new folder")) == ["one"]
    assert store.path.stat().st_mode & 0o007 == 0
    assert store.folder.stat().st_mode & 0o007 == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Busy])
def test_a_transaction_whose_body_raises_is_rolled_back(store: Store, error: type[BaseException]) -> None:
    def fail() -> None:
        with store.transaction() as connection:
            connection.execute("DELETE FROM requests")
            raise error("stop")

    with pytest.raises(error):
        fail()

    assert _names(store) == ["first"]
    _insert(store, "second")
    assert _names(store) == ["first", "second"]


def test_a_statement_that_fails_rolls_the_transaction_back_and_names_the_file(store: Store) -> None:
    def fail() -> None:
        with store.transaction() as connection:
            connection.execute("INSERT INTO requests VALUES ('made', 'second', uuid())")
            connection.execute("INSERT INTO requests VALUES ('made', 'first', uuid())")

    with pytest.raises(StoreError, match=f"the job store {store.path}: Constraint Error"):
        fail()

    assert _names(store) == ["first"]


def test_a_process_killed_in_a_transaction_leaves_nothing_of_it(store: Store) -> None:
    program = (
        "import os, sys; from pathlib import Path; from servicectl.store import Store\n"
        "with Store(Path(sys.argv[1])).transaction() as connection:\n"
        "    connection.execute('DELETE FROM requests')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(store.folder)], cwd=ROOT)

    assert killed.returncode == -signal.SIGKILL
    assert _names(store) == ["first"]


def test_reading_makes_nothing_and_may_not_write(tmp_path: Path, store: Store) -> None:
    with Store(tmp_path / "none").reading() as connection:
        assert connection is None

    assert not (tmp_path / "none").exists()
    with pytest.raises(StoreError, match="read-only"), store.reading() as connection:
        connection.execute("DELETE FROM requests")  # type: ignore[union-attr] -- the store exists


def test_processes_that_make_the_store_at_once_make_one_and_lose_nothing(start: Start, tmp_path: Path) -> None:
    started = [start("create", f"by {number}") for number in range(4)]
    assert [one.line() for one in started] == ["ready"] * 4
    for one in started:
        one.go_on()

    assert [one.ended() for one in started] == [(0, [])] * 4
    assert _names(Store(tmp_path)) == [f"by {number}" for number in range(4)]


def test_what_a_crash_left_of_a_half_made_store_is_replaced(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "servicectl.new")) as connection:
        connection.execute("CREATE TABLE jobs (half BOOLEAN)")
    (tmp_path / "servicectl.new.wal").write_bytes(b"half")

    _insert(Store(tmp_path), "one")

    assert _names(Store(tmp_path)) == ["one"]
    assert {path.name for path in tmp_path.iterdir()} == {f"servicectl.duckdb{end}" for end in ("", ".lock", ".wal")}


def test_a_store_of_a_newer_program_is_refused_and_left_as_it_is(store: Store) -> None:
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("UPDATE schema_info SET version = 99")
    before = store.path.read_bytes()

    for use in (lambda: _insert(store, "second"), lambda: _names(store)):
        with pytest.raises(StoreError, match=f"schema version 99, this program knows {SCHEMA_VERSION}") as caught:
            use()

        assert "install" in caught.value.cure
    assert store.path.read_bytes() == before


def test_a_duckdb_file_that_is_no_job_store_is_refused(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "servicectl.duckdb")) as connection:
        connection.execute("CREATE TABLE features (a INTEGER)")

    with pytest.raises(StoreError, match="is no job store of servicectl"):
        _insert(Store(tmp_path), "one")


def _junk(file: Path) -> None:
    file.write_bytes(b"junk" * 1000)


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _flipped_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4200] ^= 255
    content[8400] ^= 255
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [_junk, _empty, _cut, _flipped_byte])
def test_a_damaged_file_is_told_with_a_recipe_and_nothing_is_deleted(
    store: Store, harm: Callable[[Path], None]
) -> None:
    harm(store.path)
    before = store.path.read_bytes()

    for use in (lambda: _insert(store, "second"), lambda: _names(store)):
        with pytest.raises(StoreError, match=f"{store.path} is damaged") as caught:
            use()

        assert "nothing was deleted" in caught.value.cure
        assert "servicectl jobs restore FILE" in caught.value.cure
    assert store.path.read_bytes() == before


def _foreign_wal(store: Store) -> Path:
    other = Store(store.folder / "other")
    _insert(other, "foreign")
    with duckdb.connect(str(other.path)) as connection:
        connection.execute("PRAGMA disable_checkpoint_on_shutdown")
        connection.execute("INSERT INTO requests VALUES ('made', 'foreign too', uuid())")
    store_fold.fold_alone(store.path)
    foreign = Path(f"{store.path}.wal")
    shutil.copy(f"{other.path}.wal", foreign)
    return foreign


def test_the_wal_of_another_file_is_refused_and_kept(store: Store) -> None:
    foreign = _foreign_wal(store)
    before = foreign.read_bytes()

    with pytest.raises(StoreError, match="foreign WAL") as caught:
        _insert(store, "second")

    assert "servicectl jobs restore FILE" in caught.value.cure
    assert foreign.read_bytes() == before
    foreign.unlink()
    assert _names(store) == ["first"]


def _left_wal(store: Store, *names: str) -> Path:
    """What a killed process leaves: committed rows in the WAL."""
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("PRAGMA disable_checkpoint_on_shutdown")
        for name in names:
            connection.execute("INSERT INTO requests VALUES ('made', ?, uuid())", [name])
    return Path(f"{store.path}.wal")


def _found_or_refused(store: Store) -> list[str] | StoreError:
    try:
        return _names(store)
    except StoreError as error:
        return error


def test_a_wal_with_a_damaged_byte_is_refused_and_kept_and_never_gives_anything_but_a_beginning(store: Store) -> None:
    """DuckDB takes a damaged length for the end of the WAL; whatever else is damaged, its checksum tells."""
    committed = [f"row {number:02}" for number in range(20)]
    wal = _left_wal(store, *committed)
    whole, refused = wal.read_bytes(), 0

    for place in range(100, len(whole), len(whole) // 12):
        harmed = bytearray(whole)
        harmed[place] ^= 255
        wal.write_bytes(harmed)
        found = _found_or_refused(store)
        if isinstance(found, StoreError):
            refused += 1
            assert f"{store.path} is damaged: " in found.message
            assert "nothing was deleted" in found.cure
            assert isinstance(_found_or_refused(store), StoreError)
        else:
            assert found[1:] == committed[: len(found) - 1]
        assert wal.read_bytes() == harmed

    assert refused >= 3


@pytest.mark.parametrize(("cut", "zeros", "expected"), [(7, 0, ["kept"]), (0, 4096, ["kept", "last"])])
def test_a_wal_that_power_loss_tore_at_its_end_gives_what_was_whole(
    store: Store, cut: int, zeros: int, expected: list[str]
) -> None:
    wal = _left_wal(store, "kept", "last")
    content = wal.read_bytes()
    wal.write_bytes(content[: len(content) - cut] + bytes(zeros))

    assert _names(store) == ["first", *expected]
    _insert(store, "second")
    assert _names(store) == ["first", *expected, "second"]


def test_a_folder_where_the_file_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "servicectl.duckdb").mkdir()

    for use in (lambda: _insert(Store(tmp_path), "one"), lambda: _names(Store(tmp_path))):
        with pytest.raises(StoreError, match=str(tmp_path / "servicectl.duckdb")) as caught:
            use()

        assert caught.value.cure


def _versionless(store: Store) -> None:
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("DELETE FROM schema_info")


def test_a_store_whose_version_somebody_deleted_is_no_job_store(store: Store) -> None:
    _versionless(store)

    with pytest.raises(StoreError, match="is no job store of servicectl"):
        _insert(store, "second")


def _lock_is_a_folder(store: Store) -> None:
    (store.folder / "servicectl.duckdb.lock").unlink()
    (store.folder / "servicectl.duckdb.lock").mkdir()


def _newer(store: Store) -> None:
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("UPDATE schema_info SET version = 99")


@pytest.mark.parametrize(
    ("harm", "says", "status"),
    [
        (lambda store: _junk(store.path), "is damaged", 65),
        (_foreign_wal, "is a foreign WAL", 65),
        (_versionless, "is no job store", 65),
        (_newer, "schema version 99", 1),
        (_lock_is_a_folder, "servicectl.duckdb.lock cannot be opened: Is a directory", 1),
    ],
)
def test_a_command_over_a_store_that_cannot_be_used_ends_in_its_status_with_the_next_thing_to_do(
    store: Store, harm: Callable[[Store], None], says: str, status: int
) -> None:
    harm(store)

    ended = _command(store.folder, "jobs", "list")

    assert (ended.returncode, ended.stdout) == (status, "")
    assert says in ended.stderr
    assert "next: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_command_over_a_store_that_is_held_ends_in_75(start: Start, store: Store) -> None:
    with store.transaction():
        busy = _command(store.folder, "jobs", "list")
    other = start("open")
    assert other.line() == "open"
    held = _command(store.folder, "jobs", "list")

    assert (busy.returncode, held.returncode) == (75, 75)
    assert "was busy for 0.3 s" in busy.stderr
    assert f"PID {other.process.pid}" in held.stderr


@pytest.mark.parametrize(
    ("said", "kind", "says"),
    [
        ("IO Error: Could not write file: No space left on device", StoreFull, "no space left for"),
        ("IO Error: Could not write file: Disk quota exceeded", StoreFull, "no quota left for"),
        ("IO Error: Could not write file: File too large", StoreFull, "no size allowed by ulimit -f left for"),
        ("IO Error: Could not read from file: Input/output error", StoreFull, "the disk of"),
        ("FATAL Error: database has been invalidated because of a previous fatal error", StoreDamaged, "is damaged"),
        ("IO Error: file with version number 999, but we can only read 64", StoreError, "by a newer DuckDB"),
    ],
)
def test_trouble_that_no_test_can_make_has_words_of_its_own_too(
    tmp_path: Path, said: str, kind: type[StoreError], says: str
) -> None:
    told = store_file.explained(duckdb.Error(said), tmp_path / "servicectl.duckdb")

    assert type(told) is kind
    assert says in str(told)
    assert told.cure
    assert "report this" not in told.cure


def _command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    config = folder / "servicectl.toml"
    config.write_text(f"[state]\nfolder = '{folder}'\n[jobs]\nlock_wait_s = 0.3\n")
    command = [sys.executable, "-m", "servicectl", "--config", str(config), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_program_that_holds_the_file_open_makes_us_busy_after_the_deadline(start: Start, store: Store) -> None:
    other = start("open")
    assert other.line() == "open"

    for use in (lambda: _insert(store, "second"), lambda: _names(store)):
        with pytest.raises(Busy, match=f"another program holds {store.path} open") as caught:
            use()

        assert f"PID {other.process.pid}" in caught.value.message
    other.go_on()
    other.ended()
    _insert(store, "second")


def _in_the_main_thread(use: Callable[[], object]) -> None:
    use()


def _in_another_thread(use: Callable[[], object]) -> None:
    raised: list[ServicectlError] = []

    def run() -> None:
        try:
            use()
        except ServicectlError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in raised:
        raise error


@pytest.mark.parametrize("run", [_in_the_main_thread, _in_another_thread])
@pytest.mark.parametrize("wait_s", [0.05, 0.0])
def test_a_store_that_stays_busy_is_busy_after_the_deadline_and_not_for_ever(
    store: Store, run: Callable[[Callable[[], object]], None], wait_s: float
) -> None:
    impatient = Store(store.folder, lock_wait_s=wait_s)
    before = signal.getsignal(signal.SIGALRM)

    with store.transaction(), pytest.raises(Busy, match=f"was busy for {wait_s:g} s"):
        run(lambda: _insert(impatient, "second"))

    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    run(lambda: _insert(impatient, "second"))
    assert _names(store) == ["first", "second"]


def test_a_waiting_process_gets_its_turn(start: Start, store: Store) -> None:
    with store.transaction() as connection:
        waiting = start("create", "second")
        waiting.line()
        waiting.go_on()
        connection.execute("INSERT INTO requests VALUES ('made', 'before', uuid())")

    assert waiting.ended() == (0, [])
    assert _names(store) == ["before", "first", "second"]


def test_a_state_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")

    with pytest.raises(StoreError, match=r"state cannot be made: File exists") as caught:
        _insert(Store(tmp_path / "state"), "one")

    assert "[state] folder" in caught.value.cure


@pytest.mark.root
@pytest.mark.parametrize(
    ("kind", "refused"),
    [("nfs4", True), ("cifs", True), ("fuse.rclone", True), ("fuse.fuse-overlayfs", False), ("ext4", False)],
)
def test_a_network_file_system_is_refused_because_its_locks_cannot_be_trusted(
    tmp_path: Path, kind: str, refused: bool
) -> None:
    """Seen through another list of mounts, in a mount namespace of its own: a space in the name, mounts in mounts."""
    folder = tmp_path / "a share" / "state"
    mounts = tmp_path / "mounts"
    place = str(folder.parent).replace(" ", "\\040")
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/b {tmp_path} xfs rw 0 0\nserver:/c {place} {kind} rw 0 0\n")
    store = "import sys; from pathlib import Path; from servicectl.store import Store; s = Store(Path(sys.argv[1]))"
    begin = f"{store}\ntry:\n with s.transaction(): print('made')\nexcept Exception as error: print(type(error).__name__, error)"
    shell = 'mount --bind "$1" /proc/$$/mounts || exit 77; exec "$2" -c "$3" "$4"'
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, "sh", str(mounts), sys.executable, begin, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if os.getuid() != 0 or ran.returncode == 77:
        missing("root", "only root can mount")

    told = f"StoreError the state folder {folder} is on a network file system ({kind})"
    assert ran.stdout.startswith(told if refused else "made"), ran.stdout + ran.stderr
    assert (folder / "servicectl.duckdb").exists() is not refused


_AS_NOBODY = """
import os, sys
from pathlib import Path
from servicectl.errors import ServicectlError
from servicectl.jobs.locks import Locks
from servicectl.store import Store
import duckdb
folder = Path(sys.argv[1])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
def write():
    with Store(folder).transaction(): pass
def read():
    with Store(folder).reading() as connection: print("nothing" if connection is None else "read")
def lock():
    Locks(folder / "locks").take("a")
try:
    {"write": write, "read": read, "lock": lock}[sys.argv[2]]()
except ServicectlError as error:
    print(type(error).__name__, error)
"""


def _as_nobody(folder: Path, what: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(folder), what], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can reach."""
    if os.getuid() != 0:
        missing("root", "only root can become another user")
    # Not below pytest's own folder: each further run of pytest closes that to other users again.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.root
@pytest.mark.parametrize(
    ("mode", "what", "expected"),
    [
        (0o755, "write", "StoreDenied the state folder {} is not writable for this user"),
        (0o755, "read", "StoreDenied the store's lock {}/servicectl.duckdb.lock cannot be opened: Permission denied"),
        (0o755, "lock", "StoreDenied the lock file {}/locks/"),
        (0o700, "write", "StoreDenied the state folder {} is not writable for this user"),
        (0o700, "read", "StoreDenied the state folder {} cannot be read: Permission denied"),
    ],
)
def test_a_user_without_the_rights_is_told_what_to_do(public: Path, mode: int, what: str, expected: str) -> None:
    _insert(Store(public), "one")
    public.chmod(mode)

    said = _as_nobody(public, what)

    assert said.startswith(expected.format(public))
    assert re.search("owner|owns", said)


@pytest.mark.root
@pytest.mark.parametrize("what", ["write", "read"])
def test_a_file_that_another_user_left_in_ones_own_folder_is_told(public: Path, what: str) -> None:
    _insert(Store(public), "one")
    (public / "servicectl.duckdb").chmod(0o600)
    for path in (public, public / "servicectl.duckdb.lock"):
        os.chown(path, 65534, 65534)

    said = _as_nobody(public, what)

    assert said.startswith("StoreDenied ")
    assert f"{public}/servicectl.duckdb" in said
    assert "Permission denied" in said
    assert "run as the owner" in said


@pytest.mark.root
def test_a_lock_that_root_left_behind_is_told_to_its_owner(public: Path) -> None:
    from servicectl.jobs.locks import Locks

    Locks(public / "locks").take("a").close()
    for path in (public, public / "locks"):
        os.chown(path, 65534, 65534)

    said = _as_nobody(public, "lock")

    assert "StoreDenied the lock file" in said
    assert "sudo chown -R" in said


@pytest.mark.root
def test_a_read_only_file_system_is_told(tmp_path: Path) -> None:
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path)]).returncode != 0:
        missing("root", "only root can mount")
    try:
        _insert(Store(tmp_path), "one")
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)

        for use in (lambda: _insert(Store(tmp_path), "two"), lambda: _names(Store(tmp_path))):
            with pytest.raises(StoreDenied, match="is on a file system that is mounted read-only") as caught:
                use()
            assert "findmnt" in caught.value.cure
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.root
def test_a_disk_too_full_for_a_new_store_is_told_and_nothing_half_made_stays(tmp_path: Path) -> None:
    mounting = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(tmp_path)]
    if os.getuid() != 0 or subprocess.run(mounting).returncode != 0:
        missing("root", "only root can mount")
    try:
        with pytest.raises(StoreError, match="no space left") as caught:
            _insert(Store(tmp_path), "one")

        assert "df -h" in caught.value.cure
        assert [path.name for path in tmp_path.iterdir()] == ["servicectl.duckdb.lock"]
        subprocess.run(["mount", "-o", "remount,size=8m", str(tmp_path)], check=True)
        _insert(Store(tmp_path), "one")
        assert _names(Store(tmp_path)) == ["one"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.root
def test_a_full_disk_loses_nothing_and_is_told(tmp_path: Path) -> None:
    mounting = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(tmp_path)]
    if os.getuid() != 0 or subprocess.run(mounting).returncode != 0:
        missing("root", "only root can mount")
    try:
        store = Store(tmp_path)
        _insert(store, "one")
        subprocess.run(["dd", "if=/dev/zero", f"of={tmp_path / 'big'}", "bs=4k"], stderr=subprocess.DEVNULL)

        with pytest.raises(StoreError, match="no space left") as caught:
            _insert(store, "x" * 100_000)

        assert "df -h" in caught.value.cure
        assert _names(store) == ["one"]
        (tmp_path / "big").unlink()
        _insert(store, "two")
        assert _names(store) == ["one", "two"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
