"""Many at once: nobody sees an error, nothing is lost, and between transactions nothing of the store is open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.contention import Storm, storm_of
from servicectl.errors import StoreError
from servicectl.jobs.model import NewJob
from servicectl.store import Store
from tests.jobs.program import runner
from tests.parts import ROOT, missing
from tests.parts.jobs import Start, job_programs

_WRITER = """
import sys
from pathlib import Path
from servicectl.store import Store
store = Store(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(25):
    with store.transaction() as connection:
        connection.execute("INSERT INTO requests VALUES (?, ?, uuid())", [sys.argv[2], str(number)])
"""


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


def _list(folder: Path) -> subprocess.CompletedProcess[str]:
    config = folder / "servicectl.toml"
    config.write_text(f"[state]\nfolder = '{folder}'\n")
    command = [sys.executable, "-m", "servicectl", "--config", str(config), "--json", "jobs", "list"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_processes_that_start_at_once_on_one_job_and_on_many_lose_nothing(tmp_path: Path) -> None:
    storm = Storm()

    storm_of("ours", tmp_path, storm, 8)

    assert (storm.errors, storm.lost, len(storm.seconds)) == (0, 0, 8)


def test_the_storm_counts_what_is_missing(tmp_path: Path) -> None:
    """The figure above can be other than zero: a table in which somebody wrote differs."""
    storm = Storm()
    _insert(Store(tmp_path), "x")
    with Store(tmp_path).transaction() as connection:
        connection.execute(
            "INSERT INTO events VALUES (uuid(), 1, 0, 'claim', 'PENDING', 'RUNNING', '', now()::TIMESTAMP)"
        )

    storm_of("ours", tmp_path, storm, 2)

    assert (storm.errors, storm.lost) == (0, 1)


def test_jobs_list_succeeds_every_time_while_many_write(tmp_path: Path) -> None:
    mine = runner(tmp_path)
    mine.submit(NewJob("work", "a-scope"))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path), f"writer {number}"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()

    listed = [_list(tmp_path)]
    while any(writer.poll() is None for writer in writers):
        assert len(mine.table.newest()) == 1
        listed += [_list(tmp_path)] if len(listed) < 3 else []

    assert [one.returncode for one in listed] == [0] * len(listed), listed
    assert [len(json.loads(one.stdout)["jobs"]) for one in listed] == [1] * len(listed)
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert len(_names(Store(tmp_path))) == 6 * 25


def test_jobs_list_succeeds_while_a_job_runs(tmp_path: Path, start: Start) -> None:
    job = runner(tmp_path).submit(NewJob("work", "a-scope", {"steps": ["one=wait"]})).job
    running = start("run", job.job_id)
    assert running.line() == "in one"

    listed = [_list(tmp_path) for _ in range(2)]

    assert [one.returncode for one in listed] == [0, 0]
    assert [json.loads(one.stdout)["jobs"][0]["state"] for one in listed] == ["RUNNING", "RUNNING"]


def _open_files(folder: Path) -> list[str]:
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            links.append(os.readlink(descriptor))  # noqa: PTH115 -- a link may name a pipe, which is no path
        except FileNotFoundError:
            continue  # the folder's own
    return [link for link in links if link.startswith(str(folder))]


def test_between_transactions_nothing_of_the_store_is_open(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _insert(store, "one")
    with store.transaction():
        assert len(_open_files(tmp_path)) >= 2  # the lock and the file

    assert _names(store) == ["one"]
    assert _open_files(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {f"servicectl.duckdb{end}" for end in ("", ".lock", ".wal")}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_a_transaction_that_is_broken_off_lets_go_of_the_store_and_the_next_one_works(
    tmp_path: Path, error: type[BaseException]
) -> None:
    store = Store(tmp_path)
    _insert(store, "one")

    def broken() -> None:
        with store.transaction() as connection:
            connection.execute("DELETE FROM requests")
            raise error

    with pytest.raises(error):
        broken()

    assert _open_files(tmp_path) == []
    _insert(store, "two")
    assert _names(store) == ["one", "two"]


def test_what_a_body_left_behind_in_the_connection_does_not_keep_the_store(tmp_path: Path) -> None:
    """A body that ends the transaction itself, or begins another, must not hold everybody else up."""
    store = Store(tmp_path)
    _insert(store, "one")

    def twice() -> None:
        with store.reading() as connection:
            assert connection is not None
            connection.execute("BEGIN")
            connection.execute("FROM requests").fetchall()

    twice()

    assert _open_files(tmp_path) == []
    _insert(store, "two")
    with pytest.raises(StoreError, match="nonsense"), store.transaction() as connection:
        connection.execute("FROM nonsense")
    assert _open_files(tmp_path) == []
    assert _names(store) == ["one", "two"]


def test_threads_of_one_process_take_turns(tmp_path: Path) -> None:
    store, raised = Store(tmp_path), []

    def write(name: str) -> None:
        try:
            for number in range(5):
                _insert(store, f"{name} {number}")
                assert f"{name} {number}" in _names(store)
        except BaseException as error:  # noqa: BLE001 -- handed to the test, whatever it is
            raised.append(error)

    threads = [threading.Thread(target=write, args=[f"thread {number}"]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert raised == []
    assert len(_names(store)) == 20


def test_a_forked_child_does_not_use_its_parents_instance(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from servicectl.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "def insert(name):\n"
        "    with store.transaction() as connection:\n"
        "        connection.execute(\"INSERT INTO requests VALUES ('made', ?, uuid())\", [name])\n"
        "insert('parent before')\n"
        "instance = store._engine.start()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    insert('child')\n"
        "    os._exit(0 if store._engine.start() is not instance else 1)\n"
        "insert('parent')\n"
        "_, status = os.waitpid(child, 0)\n"
        "sys.exit(os.waitstatus_to_exitcode(status))\n"
    )

    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)

    assert ended.returncode == 0, ended.stderr
    assert _names(Store(tmp_path)) == ["child", "parent", "parent before"]


def test_an_instance_is_renewed_now_and_then(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _insert(store, "one")
    first = store._engine.start()
    assert store._engine.start() is first
    store._engine._uses = 10_000

    _insert(store, "two")

    assert store._engine.start() is not first
    assert _names(store) == ["one", "two"]


@pytest.mark.root
def test_a_disk_too_full_to_fold_the_wal_keeps_what_was_committed(tmp_path: Path) -> None:
    """The WAL has room, the file has not: the transaction is done, and folded in when there is room again."""
    mounting = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(tmp_path)]
    if os.getuid() != 0 or subprocess.run(mounting).returncode != 0:
        missing("root", "only root can mount")
    try:
        store = Store(tmp_path)
        _insert(store, "one")
        with (tmp_path / "big").open("wb") as big:
            free = os.statvfs(tmp_path).f_bavail * 4096
            big.write(b"0" * (free - 64 * 1024))

        _insert(store, "two" * 12_000)

        assert (tmp_path / "servicectl.duckdb.wal").exists()
        assert _names(store) == ["one", "two" * 12_000]
        (tmp_path / "big").unlink()
        _insert(store, "three")
        assert not (tmp_path / "servicectl.duckdb.wal").exists()
        assert _names(store) == ["one", "three", "two" * 12_000]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
