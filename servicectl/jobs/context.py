"""What an action sees of its own job: durable steps, observations, a work folder and other scopes' locks."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from servicectl import crash, log
from servicectl.errors import Busy, ServicectlError, StoreError
from servicectl.jobs import signals
from servicectl.jobs.locks import Locks
from servicectl.jobs.model import Job, Step
from servicectl.jobs.products import is_intact, mapped, products
from servicectl.jobs.steps import StepChange

Value = TypeVar("Value")


class StepSink(Protocol):
    """Where step changes are written; the runner hands in the jobs table."""

    def change_steps(self, job: Job, change: StepChange) -> bool: ...


class Cancelled(Exception):
    """The operator asked this job to stop."""


class Unrecorded(Exception):
    """The store could not be written: the store's trouble, not the job's, which a later run carries on."""

    def __init__(self, trouble: ServicectlError) -> None:
        super().__init__(str(trouble))
        self.trouble = trouble


class JobContext:
    """Handed to an action. `step` memoises intents and products; `observe` looks at the world again on each resume.

    The end of one step and the beginning of the next are one transaction, so a finished step is recorded when the
    next begins, before an observation, and when the action returns or raises.
    """

    def __init__(self, job: Job, steps: list[Step], table: StepSink, locks: Locks, state_folder: Path) -> None:
        self.job = job
        self._steps = {step.name: step for step in steps}
        self._table = table
        self._locks = locks
        self._state_folder = state_folder
        self._unrecorded: tuple[str, str] | None = None
        self._failed: tuple[str, str] | None = None
        self._running: str | None = None
        self._passed: set[str] = set()

    @property
    def folder(self) -> Path:
        """`work/<job>/<epoch>/`: an orphan of an earlier epoch cannot write here."""
        folder = self._state_folder / "work" / self.job.job_id / str(self.job.epoch)
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        return folder

    def step(self, name: str, run: Callable[[], Value], returns: type[Value]) -> Value:
        """Given a step that has completed before, return its stored value; else run it and record what it returns.

        The value is small JSON-able data: paths, digests, counts, decisions. Files are named by objects with `path`,
        `sha256` and `bytes`; they must be fsynced, and are checked by size and digest before a stored value is used.
        A missing or changed file means that this step and all after it are done again.
        """
        if name in self._passed:
            raise ValueError(f"step {name!r} is used twice in one action")
        self._passed.add(name)
        known, stale = self._steps.get(name), None
        if known is not None and known.state == "COMPLETED":
            if all(is_intact(product) for product in products(self.located(known.output))):
                return self._converted(name, known.output, returns)
            stale = known.seq
            self._steps = {other: step for other, step in self._steps.items() if step.seq < known.seq}
        signals.check()
        self._write(StepChange(completed=self._unrecorded, failed=self._failed, stale_from=stale, begin=name))
        log.working(f"{self.job.scope}: {name}")
        crash.point(f"{self.job.kind}/{name}/before")
        try:
            value = run()
        except Exception as error:
            # The action may catch this and go on; the record must not show the step as running for ever.
            self._failed, self._running = (name, str(error)), None
            raise
        crash.point(f"{self.job.kind}/{name}/effect")
        output = self.portable(msgspec.json.decode(msgspec.json.encode(value)))
        with signals.deferred():
            self._unrecorded = (name, msgspec.json.encode(output).decode())
            self._running = None
        return self._converted(name, output, returns)

    def observe(self, look: Callable[[], Value]) -> Value:
        """Look at something that is not ours (an ETag, a version, a lease); never remembered across a resume."""
        self.record()
        return look()

    def record(self) -> None:
        """Write the last finished step now."""
        if self._unrecorded is not None:
            self._write(StepChange(completed=self._unrecorded))

    def last_change(self, error: str | None = None) -> StepChange:
        """What still has to be written when the job ends: the finished step, or the running one's failure."""
        failed = (self._running, error or "interrupted") if self._running else self._failed
        return StepChange(completed=self._unrecorded, failed=failed)

    @contextlib.contextmanager
    def borrowed(self, scope: str) -> Iterator[bool]:
        """Hold another scope for a block; yields False when a living process has it, and the block must leave it alone."""
        try:
            lock = self._locks.take(scope)
        except Busy:
            lock = None
        try:
            yield lock is not None
        finally:
            if lock is not None:
                lock.close()

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """A block that SIGTERM, SIGINT and cancel do not cut.

        Both take effect when the next step begins: a job whose last step is done is complete.
        """
        with signals.deferred(check_after=False):
            yield

    def _write(self, change: StepChange) -> None:
        with signals.deferred():
            try:
                cancel = self._table.change_steps(self.job, change)
            except ServicectlError as trouble:
                raise Unrecorded(trouble) from trouble
            if change.completed is not None:
                self._unrecorded = None
            if change.failed is not None:
                self._failed = None
            self._running = change.begin
        if change.completed is not None:
            crash.point(f"{self.job.kind}/{change.completed[0]}/recorded")
        if cancel and not signals.is_deferred():
            raise Cancelled

    def _converted(self, name: str, output: Any, returns: type[Value]) -> Value:
        try:
            return msgspec.convert(self.located(output), returns)
        except msgspec.ValidationError as error:
            raise StoreError(
                f"step {name!r} of job {self.job.short_id} has a stored result this program cannot read: {error}",
                cure=f"servicectl jobs retry {self.job.short_id} --from {shlex.quote(name)}  does it again; or use the "
                "release that began it",
            ) from None

    def portable(self, value: Any) -> Any:
        """File paths below the state folder are stored relative to it, so that the folder can be moved."""
        return mapped(value, self._relative)

    def located(self, value: Any) -> Any:
        """The inverse of `portable`, for a job's spec or another job's result."""
        return mapped(value, self._absolute)

    def _relative(self, product: dict[str, Any]) -> dict[str, Any]:
        path = Path(product["path"])
        inside = path.is_absolute() and path.is_relative_to(self._state_folder)
        return {**product, "path": str(path.relative_to(self._state_folder)) if inside else str(path)}

    def _absolute(self, product: dict[str, Any]) -> dict[str, Any]:
        return {**product, "path": str(self._state_folder / product["path"])}
