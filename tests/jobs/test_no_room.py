"""No room on the disk of the job store at any one of the engine's writes: told, nothing changed, done once there is room."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from servicectl.clock import SYSTEM
from servicectl.errors import StoreFull
from servicectl.jobs.model import Job, NewJob, Result
from servicectl.jobs.runner import Runner
from servicectl.jobs.slots import Schedule
from servicectl.jobs.slots_table import SlotTable, request_id
from servicectl.jobs.steps import StepChange
from servicectl.store import Store
from servicectl.store_backup import backup, restore
from tests.jobs.program import runner
from tests.parts.disk import fill, fold_store, small_disk

_NIGHTLY = Schedule("check", "0 1 * * *", "UTC", "latest", timedelta(days=7), timedelta(minutes=30))

Write = Callable[[], object]


class Engine:
    """A store with a job in each state that a write begins from, and the writes."""

    def __init__(self, folder: Path, aside: Path) -> None:
        self.folder = folder
        self.mine: Runner = runner(folder)
        self.store = Store(folder)
        self.slots = SlotTable(self.store)
        self.waiting = self._job("waiting")
        self.failed = self._job("failed", "one=bad")
        self.mine.run(self.failed.job_id)
        self.ended = self._job("ended", "one")
        self.mine.run(self.ended.job_id)
        claimed = self.mine.table.claim(self._job("running", "one").job_id, {})
        assert claimed is not None
        self.running = claimed[0]
        self.mine.table.change_steps(self.running, StepChange(begin="one"))
        self.aside = backup(self.store, aside / "backup.duckdb", SYSTEM).file
        self.mine.table.request_cancel(self._job("since the backup").job_id)

    def _job(self, scope: str, *steps: str) -> Job:
        return self.mine.submit(NewJob("work", scope, {"steps": list(steps)})).job

    def writes(self) -> dict[str, Write]:
        table, running = self.mine.table, self.running
        step_ended = StepChange(completed=("one", "1"))
        children = [(NewJob("child", f"child-{number}", {"text": "x" * 2000}), 1, 3) for number in range(5)]

        def slot() -> object:
            return self.slots.take(
                _NIGHTLY,
                lambda one: [(NewJob("work", "slot", {}, request_id(_NIGHTLY, one.slot)), 1, 3)],
                by_timer=True,
            )

        return {
            "submit": lambda: self._job("another"),
            "claim": lambda: table.claim(self.waiting.job_id, {}),
            "end a step and begin the next": lambda: table.change_steps(running, StepChange(("one", "1"), begin="two")),
            "complete with children": lambda: table.complete(running, Result("done"), step_ended, children),
            "fail": lambda: table.fail(running, "why", "", 1, step_ended, needs_operator=True),
            "retry later": lambda: table.retry_later(running, "why", "", 60.0, step_ended),
            "give back": lambda: table.give_back(running, "why", step_ended),
            "stop": lambda: table.stop(running, step_ended),
            "cancel": lambda: table.request_cancel(self.waiting.job_id),
            "ask to cancel": lambda: table.request_cancel(running.job_id),
            "retry": lambda: table.retry(self.failed.job_id),
            "retry from a step": lambda: table.retry(self.failed.job_id, "one"),
            "slot decision": slot,
            "prune": lambda: table.prune(datetime.now(UTC), dry_run=False),
            "backup": lambda: backup(self.store, None, SYSTEM),
            "restore": lambda: restore(self.store, self.aside, SYSTEM, refuse=lambda _present: None),
        }

    def picture(self) -> dict[str, Any]:
        """Every row, and the name of every file."""
        tables = "jobs", "steps", "events", "requests", "slots", "restores"
        with self.store.reading() as connection:
            assert connection is not None
            found: dict[str, Any] = {
                table: connection.execute(f"SELECT * FROM {table} ORDER BY ALL").fetchall() for table in tables
            }
        names = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return found | {"files": sorted(str(name) for name in names if name.suffix != ".wal" and str(name) != "big")}


def _tried(engine: Engine, write: str, *, without_room: Callable[[], Any], lacks: str) -> None:
    fold_store(engine.folder)
    before = engine.picture()

    with without_room(), pytest.raises(StoreFull) as told:
        engine.writes()[write]()
    after = engine.picture()
    engine.writes()[write]()

    assert lacks in told.value.message
    assert told.value.cure
    assert after == before
    assert engine.picture() != before


_WRITES = (
    "submit", "claim", "end a step and begin the next", "complete with children", "fail", "retry later", "give back",
    "stop", "cancel", "ask to cancel", "retry", "retry from a step", "slot decision", "prune", "backup", "restore",
)  # fmt: skip


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Engine]:
    """On a disk of 12 MB."""
    with small_disk(tmp_path / "small", "12m") as folder:
        yield Engine(folder, tmp_path)


@pytest.mark.root
@pytest.mark.parametrize("write", _WRITES)
def test_a_write_for_which_the_disk_has_no_room_is_told_changes_nothing_and_is_done_once_there_is_room(
    full: Engine, write: str
) -> None:
    @contextmanager
    def without_room() -> Iterator[None]:
        big = fill(full.folder)
        try:
            yield
        finally:
            big.unlink()

    _tried(full, write, without_room=without_room, lacks="no space left")


@pytest.mark.parametrize("write", _WRITES)
def test_a_write_beyond_the_largest_file_that_is_allowed_is_told_changes_nothing_and_is_done_once_it_is(
    tmp_path: Path, write: str
) -> None:
    @contextmanager
    def without_room() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    (tmp_path / "state").mkdir()
    engine = Engine(tmp_path / "state", tmp_path)
    _tried(engine, write, without_room=without_room, lacks="ulimit -f")


def test_every_write_is_tried(tmp_path: Path) -> None:
    assert tuple(Engine(tmp_path, tmp_path).writes()) == _WRITES
