"""The WAL is brought into the store's file by a copy that takes its place, so that no kill can tear the live file."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import duckdb
import pytest

from servicectl import store_file, store_fold
from servicectl.errors import Busy
from servicectl.store import Store
from tests.parts import ROOT, missing
from tests.parts.stores import until_queued

_MANY = """
import sys
from itertools import pairwise
from pathlib import Path
from servicectl.store import Store
store = Store(Path(sys.argv[1]))
for number in range(1000):
    with store.transaction() as connection:
        connection.execute("INSERT INTO requests VALUES ('made', ?, uuid())", [f"{number:04} {'x' * 500}"])
    print(number, flush=True)
"""


def _insert(store: Store, name: str) -> None:
    with store.transaction() as connection:
        connection.execute("INSERT INTO requests VALUES ('made', ?, uuid())", [name])


def _count(store: Store) -> int:
    with store.reading() as connection:
        assert connection is not None
        return int(connection.execute("SELECT count(*) FROM requests").fetchone()[0])


def _file(path: Path) -> tuple[int, str]:
    return path.stat().st_ino, hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_live_file_is_replaced_now_and_then_and_never_written_to(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _insert(store, "first")
    seen = [_file(store.path)]
    for number in range(150):
        _insert(store, f"{number} {'x' * 500}")
        if (found := _file(store.path)) != seen[-1]:
            seen.append(found)

    assert len(seen) > 1
    # The number of a file that is gone may be given again, but never to its own successor.
    assert all(before != after for (before, _), (after, _) in pairwise(seen))
    wal = store_file.wal_of(store.path)
    assert not wal.exists() or wal.stat().st_size < 64 * 1024
    assert _count(store) == 151


@pytest.mark.parametrize("point", ["made", "ready", "wal-gone"])
def test_a_fold_killed_anywhere_loses_no_commit(tmp_path: Path, point: str) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", _MANY, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "SERVICECTL_CRASH_AT": f"store/fold/{point}"},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # The transaction that was folded is committed, though its program did not live to say so.
    told = len(killed.stdout.splitlines()) + 1

    store = Store(tmp_path)
    assert _count(store) == told
    _insert(store, "after")
    assert _count(store) == told + 1
    assert not store_fold.folded(store.path).exists()
    assert not store.path.with_suffix(".new").exists()


def test_a_store_that_cannot_be_folded_goes_on_in_its_wal(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _insert(store, "first")
    in_the_way = store.path.with_suffix(".new")
    in_the_way.mkdir()
    for number in range(100):
        _insert(store, f"{number} {'x' * 500}")
    assert store_file.wal_of(store.path).stat().st_size > 32 * 1024
    assert _count(store) == 101

    in_the_way.rmdir()
    store_fold.fold_alone(store.path)
    assert not store_file.wal_of(store.path).exists()
    assert _count(store) == 101


def _left_folded(folder: Path) -> Store:
    """A store whose fold was killed when it only had to take its place, and what its WAL must still give."""
    killed = subprocess.run(
        [sys.executable, "-c", _MANY, str(folder)],
        cwd=ROOT,
        env={**os.environ, "SERVICECTL_CRASH_AT": "store/fold/ready"},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    return Store(folder, lock_wait_s=0.3)


def test_what_somebody_committed_by_hand_between_a_killed_fold_and_the_next_command_is_kept(tmp_path: Path) -> None:
    store = _left_folded(tmp_path)
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("PRAGMA disable_checkpoint_on_shutdown")
        connection.execute("INSERT INTO requests VALUES ('made', 'by hand', uuid())")
        (by_hand,) = connection.execute("SELECT count(*) FROM requests").fetchone()

    assert _count(store) == by_hand
    assert not store_fold.folded(store.path).exists()


_SHELL = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
connection.execute("PRAGMA disable_checkpoint_on_shutdown")
print("open", flush=True)
sys.stdin.readline()
connection.execute("INSERT INTO requests VALUES ('by hand', uuid()::VARCHAR, uuid())")
"""


def test_no_fold_takes_the_file_from_under_a_shell_that_has_it_open(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _insert(store, "first")
    for begin, ready in ((lambda: None, False), (lambda: _left_folded(tmp_path), True)):
        begin()
        before = _file(store.path)
        shell = subprocess.Popen(
            [sys.executable, "-c", _SHELL, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert shell.stdout is not None
        assert shell.stdout.readline() == "open\n"
        with pytest.raises(Busy, match="another program holds"), Store(tmp_path, lock_wait_s=0.3).locked():
            store_fold.fold_alone(store.path)
        assert store_fold.folded(store.path).exists() is ready
        assert _file(store.path) == before
        shell.communicate("\n", timeout=60)

        with store.reading() as connection:
            assert connection is not None
            found = connection.execute("SELECT count(*) FROM requests WHERE kind = 'by hand'").fetchone()
        assert found == (1 + ready,)


def test_a_lock_that_was_deleted_while_held_is_no_lock_for_who_comes_next(tmp_path: Path) -> None:
    """Who has waited for the deleted file takes the new one, so that all who come later queue at the same one."""
    store = Store(tmp_path)
    _insert(store, "first")
    lock = tmp_path / "servicectl.duckdb.lock"
    begin = [sys.executable, "-c", _MANY.replace("1000", "1"), str(tmp_path)]
    with ExitStack() as later:
        with store.locked():
            waiting = subprocess.Popen(begin, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            until_queued(lock, waiting)
            lock.unlink()
            later.enter_context(Store(tmp_path).locked())
        until_queued(lock, waiting)
    out, _ = waiting.communicate(timeout=60)

    assert (waiting.returncode, out) == (0, "0\n")
    assert _count(store) == 2


@pytest.mark.root
def test_what_root_wrote_belongs_to_the_folders_owner(tmp_path: Path) -> None:
    if os.getuid() != 0:
        missing("root", "only root can write for another user")
    os.chown(tmp_path, 65534, 65534)
    store = Store(tmp_path)
    for number in range(100):
        _insert(store, f"{number} {'x' * 500}")

    files = [file for file in (store.path, store_file.wal_of(store.path)) if file.exists()]
    assert {(file.stat().st_uid, file.stat().st_gid) for file in files} == {(65534, 65534)}
