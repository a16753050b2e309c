"""A copy of the job store, and a copy put back in its place while nothing runs."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from servicectl.actions.world import World
from servicectl.errors import Busy, StoreError
from servicectl.store import Store
from servicectl.store_backup import BackedUp, Present, Restored
from servicectl.store_backup import backup as copied
from servicectl.store_backup import restore as put_back


def backup(world: World, target: Path | None) -> BackedUp:
    """See `store_backup.backup`."""
    return copied(_store(world), target, world.clock)


def restore(world: World, source: Path) -> Restored:
    """Given a backup, make it the job store. Raises Busy while a job runs, else as `store_backup.restore`."""
    store = _store(world)

    def refuse(present: Present) -> None:
        held = held_locks(store.folder / "locks")
        if held and present.running != 0:
            raise Busy(
                f"work is under way ({', '.join(held)}); a restore would take its record from under it",
                cure="let it end, or stop it: servicectl jobs cancel JOB, else kill the process by its id",
            )

    return put_back(store, source, world.clock, refuse=refuse)


def held_locks(folder: Path) -> list[str]:
    """What the lock files that a living process holds say: scope and process id. Raises StoreError.

    It needs no readable job table.
    """
    held = []
    for path in sorted(folder.glob("*.lock")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(
                f"the lock file {path} cannot be opened: {error.strerror}", cure="run as the owner of the state folder"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            held.append(os.read(descriptor, 200).decode(errors="replace").strip() or path.name)
        finally:
            os.close(descriptor)
    return held


def _store(world: World) -> Store:
    return Store(world.config.state_folder, clock=world.clock, lock_wait_s=world.config.jobs.lock_wait_s)
