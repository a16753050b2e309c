"""The kernel says who is alive."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from servicectl.clock import SYSTEM, Clock
from servicectl.errors import Busy, StoreError
from servicectl.jobs.locks import Locks
from tests.parts.jobs import Start


@pytest.fixture
def locks(tmp_path: Path) -> Locks:
    return Locks(tmp_path / "locks")


def test_a_held_scope_is_busy_and_alive_and_another_one_is_not(start: Start, locks: Locks) -> None:
    holder = start("take", "a scope: with /odd\nletters")
    assert holder.line() == "held"

    with pytest.raises(Busy, match="is being worked on by another process"):
        locks.take("a scope: with /odd\nletters")

    assert locks.alive("a scope: with /odd\nletters")
    locks.take("another").close()
    assert not locks.alive("another")
    assert not locks.alive("never taken")


def test_a_killed_holder_is_dead_at_once(start: Start, locks: Locks) -> None:
    holder = start("take", "a")
    holder.line()

    holder.killed()

    assert not locks.alive("a")
    locks.take("a").close()


def test_asking_who_is_alive_disturbs_neither_the_holder_nor_the_next_one(locks: Locks) -> None:
    with locks.held("a"):
        assert [locks.alive("a") for _ in range(100)] == [True] * 100
    for _ in range(100):
        assert not locks.alive("a")
        locks.take("a").close()


def test_a_probe_at_the_wrong_instant_does_not_make_a_free_scope_busy(locks: Locks, tmp_path: Path) -> None:
    locks.take("a").close()
    (file,) = (tmp_path / "locks").iterdir()
    probe = os.open(file, os.O_RDONLY)
    fcntl.flock(probe, fcntl.LOCK_SH)
    while_it_waits = Clock(now=SYSTEM.now, monotonic=SYSTEM.monotonic, sleep=lambda _seconds: os.close(probe))

    Locks(tmp_path / "locks", while_it_waits).take("a").close()

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(probe)


def test_a_forked_child_does_not_keep_its_parents_lock(locks: Locks) -> None:
    lock = locks.take("a")
    said, say = os.pipe()
    wait, go_on = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go_on)
        os.write(say, b"x")
        os.read(wait, 1)
        os._exit(0)
    os.read(said, 1)

    lock.close()
    alive = locks.alive("a")
    for descriptor in (said, say, wait, go_on):
        os.close(descriptor)
    os.waitpid(child, 0)

    assert not alive


def test_a_child_that_was_executed_does_not_keep_its_parents_lock(locks: Locks) -> None:
    lock = locks.take("a")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
        lock.close()
        alive = locks.alive("a")
        assert child.poll() is None

    assert not alive


def test_a_deleted_lock_file_never_gives_one_name_two_holders_of_the_same_file(locks: Locks) -> None:
    first = locks.take("a")
    first.path.unlink()

    second = locks.take("a")

    with pytest.raises(Busy):
        locks.take("a")
    second.close()
    first.close()
    locks.take("a").close()


def test_a_lock_file_says_to_human_eyes_what_it_is_for(locks: Locks) -> None:
    lock = locks.take("serving:bank")

    assert lock.path.read_text() == f"serving:bank pid {os.getpid()}\n"


def test_a_lock_folder_that_cannot_be_made_is_an_error_with_a_cure(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("a file")

    with pytest.raises(StoreError, match="cannot be opened") as caught:
        Locks(tmp_path / "locks").take("a")
    with pytest.raises(StoreError, match="cannot be opened"):
        Locks(tmp_path / "locks").alive("a")

    assert "chown" in caught.value.cure
