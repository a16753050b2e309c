"""What the machine does to a job: memory, orphans, a reboot, a folder that was moved or belongs to somebody else."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import duckdb
import pytest

from servicectl.clock import SYSTEM, Clock
from servicectl.errors import BadData, ExitStatus, TryAgain
from servicectl.jobs.context import JobContext
from servicectl.jobs.model import Job, NewJob, Result, State
from servicectl.jobs.products import is_intact
from servicectl.jobs.runner import Kind, Runner
from servicectl.training import child
from tests.jobs.conftest import edges
from tests.jobs.program import effects, runner
from tests.parts import ROOT, missing
from tests.parts.jobs import Start, is_alive, waited_for
from tests.parts.machine import Hierarchy, hierarchies, offered


def _child_killed(start: Start, folder: Path, job: Job) -> tuple[int, list[str]]:
    (folder / "child").unlink(missing_ok=True)
    running = start("run", job.job_id)
    waited_for((folder / "child").exists)
    os.kill(int((folder / "child").read_text()), signal.SIGKILL)
    return running.ended()


def test_a_training_child_killed_for_its_memory_is_tried_again_as_often_as_the_budget_allows(
    start: Start, mine: Runner, tmp_path: Path
) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=train"]})).job

    first = _child_killed(start, tmp_path, job)
    after_one = mine.table.get(job.job_id)
    others = [_child_killed(start, tmp_path, job) for _ in range(2)]
    after_all = mine.table.get(job.job_id)

    assert first[0] == ExitStatus.TRY_AGAIN
    assert (after_one.state, after_one.attempts) == (State.PENDING, 1)
    assert "killed (SIGKILL), most likely because the machine or its unit ran out of memory" in (after_one.error or "")
    assert "training.memory_mb" in (after_one.cure or "")
    assert [status for status, _ in others] == [ExitStatus.TRY_AGAIN, ExitStatus.FAILED]
    assert (after_all.state, after_all.attempts, after_all.cure) == (State.FAILED, 3, after_one.cure)
    assert edges(mine, job)[1:] == ["claim", "retry_later", "claim", "retry_later", "claim", "fail"]


_EATER = """
import os, pathlib
pathlib.Path(%r, "cgroup.procs").write_text(str(os.getpid()))
bytearray(400 << 20)
"""


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group of 64 MiB that a child may enter."""
    first, second = (next((one for one in hierarchies() if rank(one)), None) for rank in (_first, _second))
    parent = first or second
    if os.getuid() != 0 or parent is None:
        missing("a memory control group", "only root can make one, where the kernel offers the controller to a child")
    assert parent is not None
    limits = {"memory.limit_in_bytes": 64 << 20} if first else {"memory.max": 64 << 20, "memory.swap.max": 0}
    group = parent.folder / f"servicectl-test-memory-{os.getpid()}"
    group.mkdir()
    try:
        for name, limit in limits.items():
            if (group / name).exists() or name != "memory.swap.max":  # a kernel may have no swap accounting
                (group / name).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def _first(hierarchy: Hierarchy) -> bool:
    return "memory" in hierarchy.controllers.split(",")


def _second(hierarchy: Hierarchy) -> bool:
    return not hierarchy.controllers and "memory" in offered(hierarchy.folder)


@pytest.mark.root
def test_the_kernels_own_out_of_memory_kill_of_a_child_ends_in_the_table(memory_group: Path, tmp_path: Path) -> None:
    def act(context: JobContext) -> Result:
        eater = ("-c", _EATER % str(memory_group))
        context.step("eat", lambda: child.run("t", {}, int, what="training", limits=child.Limits(), program=eater), int)
        return Result("done")

    mine = Runner(tmp_path, {"work": Kind("work", act)})
    ran = mine.run(mine.submit(NewJob("work", "a-scope")).job.job_id)

    assert (ran.job.state, ran.exit_status) == (State.PENDING, ExitStatus.TRY_AGAIN)
    assert "ran out of memory" in (ran.job.error or "")


def test_an_orphaned_trainer_does_not_keep_its_job_alive_and_writes_only_into_its_own_epoch(
    start: Start, mine: Runner, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "go")
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=orphan", "two"]})).job
    owner = start("run", job.job_id)
    orphan = int(owner.line().split()[-1])
    owner.killed()

    dead = mine.is_interrupted(mine.table.get(job.job_id))
    alive = is_alive(orphan)
    (ran,) = mine.resume()
    (tmp_path / "go").write_text("")
    waited_for((tmp_path / "written").exists)

    product = mine.table.steps(job.job_id)[0].output["product"]
    assert (dead, alive) == (True, True)
    assert (ran.job.state, ran.job.epoch) == (State.COMPLETED, 2)
    assert (tmp_path / "work" / job.job_id / "1" / "one").read_text() == "late"
    assert product["path"] == f"work/{job.job_id}/2/one"
    assert is_intact({**product, "path": str(tmp_path / product["path"])})
    assert effects(tmp_path) == ["one", "two"]


def _cut_short(start: Start, mine: Runner) -> Job:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=file", "two"]})).job
    start("run", job.job_id, crash_at="work/two/before").ended()
    return job


def test_after_a_reboot_every_running_job_is_interrupted_and_carried_on(
    start: Start, mine: Runner, tmp_path: Path
) -> None:
    job = _cut_short(start, mine)
    shutil.rmtree(tmp_path / "locks")
    elsewhere = {"host": "before the reboot", "pid": os.getpid(), "boot_id": "another", "user": "root", "started": 1}
    with duckdb.connect(str(tmp_path / "servicectl.duckdb")) as connection:
        connection.execute("UPDATE jobs SET owner = ?", [json.dumps(elsewhere)])

    interrupted = mine.is_interrupted(mine.table.get(job.job_id))
    (ran,) = mine.resume()

    assert interrupted
    assert (ran.job.state, ran.job.epoch) == (State.COMPLETED, 2)
    assert effects(tmp_path) == ["one", "two"]


def test_a_state_folder_that_was_moved_with_its_locks_is_carried_on_where_it_is(start: Start, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    before = runner(old)
    job = before.submit(NewJob("work", "a-scope", {"steps": ["one=file", "two"]})).job
    start("run", job.job_id, crash_at="work/two/before", folder=old).ended()
    shutil.copytree(old, new)
    shutil.rmtree(old)

    moved = runner(new)
    interrupted = moved.is_interrupted(moved.table.get(job.job_id))
    (ran,) = moved.resume()

    assert interrupted
    assert ran.job.state is State.COMPLETED
    assert effects(new) == ["one", "two"]
    assert not old.exists()


# Everything is imported first: the other user may not be able to read the interpreter's own files.
_AS_ANOTHER = """
import duckdb, getpass, importlib, os, pwd, random, shutil, sys, traceback
for name in sys.argv[3].split():
    importlib.import_module(name)
uid, group = int(sys.argv[1]), int(sys.argv[2])
os.setgroups([group]); os.setgid(uid); os.setuid(uid)
sys.argv[:] = ["servicectl", *sys.argv[4:]]
sys.exit(sys.modules[sys.orig_argv[5].split()[0]].main())
"""
_COMMANDS = (
    "servicectl.__main__ servicectl.cli.app servicectl.cli.job_commands servicectl.cli.job_views servicectl.cli.outcome "
    "servicectl.actions.world servicectl.actions.kinds servicectl.actions.cancel servicectl.actions.slots servicectl.config "
    "cronsim zoneinfo"
)
_GROUP = 65533


def _as_another(uid: int, config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _ran_as(uid, _COMMANDS, "--config", str(config), *arguments)


def _ran_as(uid: int, modules: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _AS_ANOTHER, str(uid), str(_GROUP), modules, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A state folder that two users of one group can reach and write."""
    if os.getuid() != 0:
        missing("root", "only root can become another user")
    # Not below pytest's own folder: every run of pytest closes that to others.
    with tempfile.TemporaryDirectory(prefix="servicectl-shared-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "servicectl.toml").write_text(f'[state]\nfolder = "{folder}/state"\n')
        state = folder / "state"
        state.mkdir()
        os.chown(state, 65534, _GROUP)
        state.chmod(0o2770)
        yield folder


@pytest.mark.root
@pytest.mark.parametrize(
    "arguments", [("jobs", "list"), ("jobs", "resume"), ("jobs", "cancel", "{}"), ("jobs", "retry", "{}")]
)
def test_a_second_user_of_the_folder_is_refused_with_a_cure_and_changes_nothing(
    shared: Path, arguments: tuple[str, ...]
) -> None:
    config = shared / "servicectl.toml"
    assert _as_another(65534, config, "alarms", "list").returncode == 0
    mine = runner(shared / "state")
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one"]})).job
    _given_to(65534, shared / "state")

    ended = _as_another(65532, config, *(argument.format(job.short_id) for argument in arguments))

    assert ended.returncode == ExitStatus.STORE_DENIED, ended
    assert "Permission denied" in ended.stderr or "not writable" in ended.stderr
    assert f"run as the user that owns {shared}/state" in ended.stderr or "run as its owner" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert edges(mine, job) == ["submit"]


@pytest.mark.root
def test_what_root_looks_at_and_cancels_leaves_nothing_that_its_owner_could_not_use(shared: Path) -> None:
    config = shared / "servicectl.toml"
    mine = runner(shared / "state")
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one"]})).job
    _given_to(65534, shared / "state")

    for arguments in (("jobs", "list"), ("jobs", "show", job.short_id), ("jobs", "cancel", job.short_id)):
        assert _as_another(0, config, *arguments).returncode == 0

    assert {path.stat().st_uid for path in (shared / "state").rglob("*")} == {65534}
    assert _as_another(65534, config, "jobs", "list", "--failed").stdout == "no jobs yet\n"


def _given_to(uid: int, folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, _GROUP)


@pytest.mark.root
def test_a_work_folder_that_root_left_behind_is_told_with_its_cure(shared: Path) -> None:
    mine = runner(shared / "state")
    new = NewJob("work", "a-scope", {"steps": ["one=file"]})
    job = mine.submit(new).job
    _given_to(65534, shared / "state")
    (shared / "state" / "work").mkdir(mode=0o750)

    ended = _ran_as(65534, "tests.jobs.program", str(shared / "state"), "run", job.job_id)

    failed = mine.table.get(job.job_id)
    assert ended.returncode == ExitStatus.FAILED, ended
    assert (failed.state, failed.needs_operator) == (State.FAILED, True)
    assert "a file cannot be used: [Errno 13] Permission denied" in (failed.error or "")
    assert f"sudo chown -R OWNER {shared}/state" in (failed.cure or "")


def test_a_stored_value_whose_product_is_no_product_is_a_clear_error(mine: Runner, start: Start) -> None:
    job = _cut_short(start, mine)
    with duckdb.connect(str(mine.folder / "servicectl.duckdb")) as connection:
        odd = {"name": "one", "product": {"path": 5, "sha256": [], "bytes": "many"}}
        connection.execute("UPDATE steps SET output = ? WHERE name = 'one'", [json.dumps(odd)])

    ran = mine.run(job.job_id)

    assert (ran.job.state, ran.job.needs_operator) == (State.FAILED, True)
    assert "step 'one'" in (ran.job.error or "")
    assert "cannot read: Expected `str`, got `int` - at `$.product.path`" in (ran.job.error or "")


def test_trouble_of_the_store_is_not_recorded_as_the_jobs_failure_even_when_it_is_over_by_then(tmp_path: Path) -> None:
    """Somebody holds the store just as long as the step's end is to be written."""
    holder: list[int] = []
    ticks = count(step=100)

    def monotonic() -> float:
        tick = next(ticks)
        if holder and tick >= holder[1]:
            os.close(holder[0])
            holder.clear()
        return float(tick)

    def act(context: JobContext) -> Result:
        context.step("one", lambda: None, type(None))
        holder[:] = [os.open(tmp_path / "servicectl.duckdb.lock", os.O_RDWR), next(ticks) + 200]
        fcntl.flock(holder[0], fcntl.LOCK_EX)
        context.step("two", lambda: None, type(None))
        return Result("done")

    clock = Clock(now=SYSTEM.now, monotonic=monotonic, sleep=lambda _seconds: None)
    mine = Runner(tmp_path, {"work": Kind("work", act)}, clock=clock, lock_wait_s=50.0)
    job = mine.submit(NewJob("work", "a-scope")).job

    # Outside the main thread, waiting for the store goes by the clock.
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(TryAgain, match=r"was busy for 50 s; work .* left as interrupted"),
    ):
        pool.submit(mine.run, job.job_id).result()

    assert holder == []
    assert edges(mine, job) == ["submit", "claim"]
    assert mine.is_interrupted(mine.table.get(job.job_id))


def test_an_error_of_the_action_keeps_its_own_words(tmp_path: Path) -> None:
    def act(context: JobContext) -> Result:
        raise BadData("no rows", cure="get some")

    mine = Runner(tmp_path, {"work": Kind("work", act)})

    ran = mine.run(mine.submit(NewJob("work", "a-scope")).job.job_id)

    assert (ran.job.error, ran.job.cure) == ("no rows", "get some")
