"""Copies of the job store: whole, put back in one step, and no way in for an owner from before."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from servicectl.actions.backup import backup, restore
from servicectl.actions.world import World
from servicectl.config import Config
from servicectl.errors import Busy, ServicectlError, StoreError, UsageError
from servicectl.jobs.locks import Locks
from servicectl.jobs.model import Job, NewJob, State
from servicectl.jobs.runner import Runner
from servicectl.jobs.table import Fenced, StepChange
from servicectl.store import SCHEMA_VERSION, Store
from tests.jobs.program import runner
from tests.parts import ROOT
from tests.parts.jobs import Start, job_programs
from tests.parts.stores import store_of_version_1

WORK = NewJob("work", "a-scope", {"steps": ["one"]})


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with job_programs(tmp_path / "state") as begin:
        yield begin


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def mine(folder: Path) -> Runner:
    return runner(folder, lock_wait_s=0.2)


@pytest.fixture
def world(folder: Path) -> World:
    return World(_config(folder))


def _config(folder: Path) -> Config:
    from servicectl import config

    file = folder.parent / "servicectl.toml"
    file.write_text(f"[state]\nfolder = '{folder}'\n[jobs]\nlock_wait_s = 0.2\n")
    return config.load(file)


def _scopes(mine: Runner) -> set[str]:
    return {job.scope for job in mine.table.newest()}


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _wal(folder: Path, request_id: str) -> None:
    """What a killed process leaves: a committed row in the WAL."""
    with duckdb.connect(str(folder / "servicectl.duckdb")) as connection:
        connection.execute("PRAGMA disable_checkpoint_on_shutdown")
        connection.execute("INSERT INTO requests VALUES ('made', ?, uuid())", [request_id])


def _requests(path: Path) -> list[str]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return [name for (name,) in connection.execute("SELECT request_id FROM requests ORDER BY 1").fetchall()]


# -- backup ---------------------------------------------------------------------------------------------------------


def test_a_backup_is_the_store_as_it_was_also_what_lay_in_its_wal(mine: Runner, world: World, tmp_path: Path) -> None:
    mine.run(mine.submit(WORK).job.job_id)
    _wal(mine.folder, "in the WAL")

    made = backup(world, tmp_path / "kept" / "jobs.duckdb")
    mine.submit(NewJob("work", "made later"))

    assert (made.jobs, made.bytes) == (1, made.file.stat().st_size)
    assert _requests(made.file) == ["in the WAL"]
    assert _names(made.file.parent) == {"jobs.duckdb"}
    assert made.file.stat().st_mode & 0o007 == 0
    assert _scopes(mine) == {"a-scope", "made later"}


def test_a_backup_is_made_while_a_job_runs(mine: Runner, world: World, start: Start) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=wait"]})).job
    running = start("run", job.job_id)
    assert running.line() == "in one"

    made = backup(world, None)

    assert made.file.parent == mine.folder / "backups"
    assert f"servicectl-version-{SCHEMA_VERSION}-" in made.file.name
    running.go_on()
    assert running.ended()[0] == 0


def test_a_backup_never_overwrites(mine: Runner, world: World, tmp_path: Path) -> None:
    mine.submit(WORK)
    (tmp_path / "there").write_text("precious")

    with pytest.raises(UsageError, match="there exists"):
        backup(world, tmp_path / "there")

    assert (tmp_path / "there").read_text() == "precious"


def test_there_is_no_backup_of_nothing(world: World, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no job store"):
        backup(world, tmp_path / "b")

    assert not folder.exists()


def test_a_backup_of_a_damaged_store_is_refused_with_the_recipe(mine: Runner, world: World, tmp_path: Path) -> None:
    mine.submit(WORK)
    (mine.folder / "servicectl.duckdb").write_bytes(b"junk" * 1000)

    with pytest.raises(StoreError, match="is damaged") as caught:
        backup(world, tmp_path / "b")

    assert "servicectl jobs restore FILE" in caught.value.cure
    assert not (tmp_path / "b").exists()


def test_a_backup_where_nothing_can_be_written_is_told_and_leaves_nothing(
    mine: Runner, world: World, tmp_path: Path
) -> None:
    mine.submit(WORK)
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError, match="file/b"):
        backup(world, tmp_path / "file" / "b")


# -- restore --------------------------------------------------------------------------------------------------------


def test_what_was_made_since_the_backup_is_gone_and_counted_and_the_rest_is_carried_on(
    mine: Runner, world: World
) -> None:
    job = mine.submit(WORK).job
    made = backup(world, None)
    mine.run(job.job_id)
    mine.submit(NewJob("work", "made later"))
    before = (mine.folder / "servicectl.duckdb").read_bytes()

    done = restore(world, made.file)

    assert (done.jobs, done.unfinished, done.lost) == (1, 1, 1)
    assert _scopes(mine) == {"a-scope"}
    assert done.kept is not None
    assert done.kept.read_bytes() == before
    [ran] = mine.resume()
    assert (ran.job.job_id, ran.job.state) == (job.job_id, State.COMPLETED)
    assert _names(mine.folder) >= {"servicectl.duckdb", "backups"}
    assert not {name for name in _names(mine.folder) if name.endswith((".new", ".folded", ".restored"))}


def _junk(file: Path) -> None:
    file.write_bytes(b"junk" * 1000)


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _flipped_bytes(file: Path) -> None:
    content = bytearray(file.read_bytes())
    for place in (4200, 8400):
        content[place] ^= 255
    file.write_bytes(content)


def _missing(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("harm", [_junk, _empty, _flipped_bytes, _missing])
def test_a_damaged_store_is_replaced_and_kept(
    mine: Runner, world: World, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    mine.submit(WORK)
    made = backup(world, tmp_path / "b")
    path = mine.folder / "servicectl.duckdb"
    harm(path)
    damaged = path.read_bytes() if path.exists() else None

    done = restore(world, made.file)

    assert _scopes(mine) == {"a-scope"}
    assert (None if done.kept is None else done.kept.read_bytes()) == damaged
    assert done.lost == (0 if damaged is None else None)


def test_a_wal_that_does_not_belong_to_the_store_is_moved_out_of_the_way_of_the_backup(
    mine: Runner, world: World, tmp_path: Path
) -> None:
    mine.submit(WORK)
    made = backup(world, tmp_path / "b")
    other = runner(tmp_path / "other")
    other.submit(WORK)
    _wal(other.folder, "foreign")
    foreign = mine.folder / "servicectl.duckdb.wal"
    shutil.copy(other.folder / "servicectl.duckdb.wal", foreign)
    content = foreign.read_bytes()

    done = restore(world, made.file)

    assert _requests(mine.folder / "servicectl.duckdb") == []
    assert Path(f"{done.kept}.wal").read_bytes() == content
    assert not foreign.exists()


def test_the_wal_that_lies_beside_a_backup_belongs_to_it(mine: Runner, world: World, tmp_path: Path) -> None:
    mine.submit(WORK)
    _wal(mine.folder, "in the WAL")
    for name in ("servicectl.duckdb", "servicectl.duckdb.wal"):
        shutil.copy(mine.folder / name, tmp_path / name)

    restore(world, tmp_path / "servicectl.duckdb")

    assert _requests(mine.folder / "servicectl.duckdb") == ["in the WAL"]
    assert (tmp_path / "servicectl.duckdb.wal").exists()


def test_a_backup_of_an_older_release_is_brought_up(mine: Runner, world: World, tmp_path: Path) -> None:
    mine.submit(WORK)
    old = store_of_version_1(tmp_path / "old")
    content = old.read_bytes()

    done = restore(world, old)

    assert (done.jobs, done.unfinished) == (2, 1)
    assert [ran.job.scope for ran in mine.resume()] == ["b-scope"]
    assert old.read_bytes() == content


def test_a_restore_makes_a_store_where_there_was_none(mine: Runner, world: World, tmp_path: Path, folder: Path) -> None:
    mine.submit(WORK)
    made = backup(world, tmp_path / "b")
    shutil.rmtree(folder)

    done = restore(world, made.file)

    assert done.kept is None
    assert _scopes(runner(folder)) == {"a-scope"}


@pytest.mark.parametrize("damaged", [False, True])
def test_a_restore_is_refused_while_a_job_runs(mine: Runner, world: World, start: Start, damaged: bool) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=wait"]})).job
    made = backup(world, None)
    running = start("run", job.job_id)
    assert running.line() == "in one"
    path = mine.folder / "servicectl.duckdb"
    if damaged:
        _junk(path)
    before = path.read_bytes()

    with pytest.raises(Busy, match=rf"a-scope pid {running.process.pid}"):
        restore(world, made.file)

    assert path.read_bytes() == before
    running.killed()
    restore(world, made.file)
    assert _scopes(mine) == {"a-scope"}


def test_a_scope_that_is_held_while_nothing_runs_does_not_stop_a_restore(mine: Runner, world: World) -> None:
    mine.submit(WORK)
    made = backup(world, None)

    with Locks(mine.folder / "locks").held("doctor"):
        assert restore(world, made.file).jobs == 1


def test_a_restore_is_refused_while_another_program_has_the_store_open(
    mine: Runner, world: World, start: Start
) -> None:
    mine.submit(WORK)
    made = backup(world, None)
    other = start("open")
    assert other.line() == "open"

    with pytest.raises(Busy, match=f"PID {other.process.pid}"):
        restore(world, made.file)

    other.go_on()
    other.ended()
    restore(world, made.file)


def _newer(file: Path) -> None:
    with duckdb.connect(str(file)) as connection:
        connection.execute("UPDATE schema_info SET version = 99")


def _other_tables(file: Path) -> None:
    file.unlink()
    with duckdb.connect(str(file)) as connection:
        connection.execute("CREATE TABLE features (a INTEGER)")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_junk, "damaged"),
        (_empty, "damaged"),
        (_flipped_bytes, "damaged"),
        (_newer, "schema version 99"),
        (_other_tables, "is no job store"),
        (_missing, "is no backup file"),
    ],
)
def test_a_backup_that_cannot_be_used_is_refused_and_the_store_stays(
    mine: Runner, world: World, tmp_path: Path, harm: Callable[[Path], None], says: str
) -> None:
    mine.submit(WORK)
    made = backup(world, tmp_path / "b.duckdb")
    harm(made.file)
    before, names = (mine.folder / "servicectl.duckdb").read_bytes(), _names(mine.folder)

    with pytest.raises(ServicectlError, match=says) as caught:
        restore(world, made.file)

    assert str(made.file) in caught.value.message
    assert caught.value.cure
    assert (mine.folder / "servicectl.duckdb").read_bytes() == before
    assert _names(mine.folder) == names


def test_the_store_itself_is_no_backup_of_itself(mine: Runner, world: World) -> None:
    mine.submit(WORK)

    with pytest.raises(UsageError, match="is no backup file"):
        restore(world, mine.folder / "servicectl.duckdb")


# -- fencing --------------------------------------------------------------------------------------------------------

ME: dict[str, Any] = {"host": "h", "pid": 1, "boot_id": "b", "user": "u"}


def _claimed(mine: Runner, job: Job) -> Job:
    claimed = mine.table.claim(job.job_id, ME)
    assert claimed is not None
    return claimed[0]


def _is_fenced(mine: Runner, owned: Job) -> bool:
    try:
        mine.table.change_steps(owned, StepChange(begin="one"))
    except Fenced:
        return True
    return False


@pytest.mark.parametrize("damaged", [False, True])
def test_an_owner_from_before_the_restore_cannot_write_not_even_when_its_epoch_would_come_again(
    mine: Runner, world: World, damaged: bool
) -> None:
    job = mine.submit(WORK).job
    made = backup(world, None)
    before = [_claimed(mine, job) for _ in range(3)]
    if damaged:
        _junk(mine.folder / "servicectl.duckdb")

    restore(world, made.file)

    assert [_is_fenced(mine, owned) for owned in before] == [True] * 3
    for _ in range(2):
        now = _claimed(mine, job)
        assert [_is_fenced(mine, owned) for owned in before] == [True] * 3
        assert not _is_fenced(mine, now)


def test_an_owner_from_before_is_fenced_in_a_failed_job_that_is_retried_after_the_restore(
    mine: Runner, world: World
) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=bad"]})).job
    mine.run(job.job_id)
    made = backup(world, None)
    mine.table.retry(job.job_id)
    before = _claimed(mine, job)

    restore(world, made.file)
    mine.table.retry(job.job_id)
    _claimed(mine, job)

    assert _is_fenced(mine, before)


def test_an_owner_from_before_is_fenced_in_a_job_that_the_backup_does_not_know(mine: Runner, world: World) -> None:
    mine.submit(NewJob("work", "b-scope"))
    made = backup(world, None)
    again = NewJob("work", "a-scope", {"steps": ["one"]}, job_id="019aafd0-0000-7000-8000-0000000000a1")
    before = _claimed(mine, mine.submit(again).job)

    restore(world, made.file)
    assert _is_fenced(mine, before)
    now = _claimed(mine, mine.submit(again).job)

    assert _is_fenced(mine, before)
    assert not _is_fenced(mine, now)


def test_the_work_folders_tell_the_epochs_that_a_damaged_store_cannot(mine: Runner, world: World) -> None:
    job = mine.submit(WORK).job
    made = backup(world, None)
    (mine.folder / "work" / job.job_id / "5000").mkdir(parents=True)
    _junk(mine.folder / "servicectl.duckdb")

    assert restore(world, made.file).epoch == 6000


# -- killed ---------------------------------------------------------------------------------------------------------

_RESTORE = (
    "import sys; from pathlib import Path; from servicectl import config\n"
    "from servicectl.actions.backup import restore; from servicectl.actions.world import World\n"
    "restore(World(config.load(Path(sys.argv[1]))), Path(sys.argv[2]))\n"
)


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("point", ["made", "ready", "wal-aside", "aside", "renamed"])
def test_a_restore_killed_anywhere_leaves_the_old_store_or_the_restored_one(
    mine: Runner, world: World, folder: Path, tmp_path: Path, point: str, damaged: bool
) -> None:
    mine.submit(WORK)
    made = backup(world, tmp_path / "b")
    mine.submit(NewJob("work", "made later"))
    _wal(folder, "in the WAL")
    if damaged:
        _junk(folder / "servicectl.duckdb")

    killed = subprocess.run(
        [sys.executable, "-c", _RESTORE, str(tmp_path / "servicectl.toml"), str(made.file)],
        cwd=ROOT,
        env={**os.environ, "SERVICECTL_CRASH_AT": f"store/restore/{point}"},
    )

    assert killed.returncode == -signal.SIGKILL
    if point == "made" and damaged:
        with pytest.raises(StoreError, match="is damaged"):
            mine.table.newest()
        return
    old = point == "made"
    assert _scopes(mine) == ({"a-scope", "made later"} if old else {"a-scope"})
    assert _requests(folder / "servicectl.duckdb") == (["in the WAL"] if old else [])
    mine.submit(NewJob("work", "after"))
    assert not {name for name in _names(folder) if name.endswith((".new", ".folded", ".restored"))} or old
    if not old:
        assert {path.suffix for path in (folder / "backups").iterdir()} == {".duckdb", ".wal"}


# -- the commands ---------------------------------------------------------------------------------------------------


def _servicectl(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "servicectl", "--config", str(tmp_path / "servicectl.toml"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_recipe_that_a_damaged_store_prints_can_be_followed(mine: Runner, world: World, tmp_path: Path) -> None:
    mine.submit(WORK)
    told = json.loads(_servicectl(tmp_path, "--json", "jobs", "backup", str(tmp_path / "b")).stdout)
    assert (told["jobs"], told["file"], told["exit_status"]) == (1, str(tmp_path / "b"), 0)
    _junk(mine.folder / "servicectl.duckdb")

    listed = _servicectl(tmp_path, "jobs", "list")
    assert (listed.returncode, listed.stdout) == (65, "")
    assert "servicectl jobs restore FILE" in listed.stderr
    restored = _servicectl(tmp_path, "jobs", "restore", str(tmp_path / "b"))

    assert restored.returncode == 0, restored.stderr
    assert "restored 1 job(s), 1 unfinished" in restored.stdout
    assert _servicectl(tmp_path, "jobs", "list").returncode == 0


@pytest.mark.parametrize(("arguments", "status"), [(("backup", "b"), 1), (("restore", "none"), 2)])
def test_a_backup_command_that_cannot_ends_in_its_status(
    world: World, tmp_path: Path, arguments: tuple[str, ...], status: int
) -> None:
    ended = _servicectl(tmp_path, "jobs", *arguments)

    assert (ended.returncode, ended.stdout) == (status, "")
    assert "next:" in ended.stderr


def test_the_store_opens_for_a_reader_whose_restore_was_killed_between_old_and_new(
    mine: Runner, world: World, folder: Path
) -> None:
    """The only instant without a file of the store's name must not look like an empty store."""
    mine.submit(WORK)
    made = backup(world, None)
    (folder / "servicectl.duckdb").rename(folder / "servicectl.duckdb.restored")

    with Store(folder).reading() as connection:
        assert connection is not None
    assert _scopes(mine) == {"a-scope"}
    assert made.file.exists()
