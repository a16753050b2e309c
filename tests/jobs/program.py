"""A program that runs jobs, for tests that kill it. What a job does stands in its spec.

`spec = {"steps": ["one", "two=wait"], "children": [...]}`: a step is a name and a verb. Every effect is one line
appended to `effects.txt`, so that a test counts what really happened. A step that waits says so on stdout and
goes on when its stdin has a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from servicectl import log
from servicectl.errors import BadData, Busy, PartyUnavailable, ServicectlError
from servicectl.files import fsync_file, sha256_of
from servicectl.jobs.context import JobContext
from servicectl.jobs.locks import Locks
from servicectl.jobs.model import NewJob, Result
from servicectl.jobs.runner import Kind, Ran, Retries, Runner, worst
from servicectl.store import Store
from servicectl.training import child


class Product(Struct, frozen=True):
    path: str
    sha256: str
    bytes: int


class Done(Struct, frozen=True):
    name: str
    product: Product | None = None


def effect(context: JobContext, text: str) -> None:
    descriptor = os.open(context.folder.parents[2] / "effects.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)


def effects(folder: Path) -> list[str]:
    """Everything that happened to the world, in order."""
    file = folder / "effects.txt"
    return file.read_text().split() if file.exists() else []


def say(text: str) -> None:
    print(text, flush=True)


def told_to_go_on() -> None:
    while os.read(0, 1) not in (b"\n", b""):
        pass


def _wait(context: JobContext, name: str) -> None:
    say(f"in {name}")
    told_to_go_on()
    effect(context, name)


def _finishing(context: JobContext, name: str) -> None:
    with context.finishing():
        _wait(context, name)
        effect(context, f"{name}-finished")


def _unavailable(_context: JobContext, _name: str) -> None:
    raise PartyUnavailable("Redis", "it does not answer", cure="start it")


def _bad(_context: JobContext, name: str) -> None:
    raise BadData(f"{name} cannot be used", cure="use other data")


def _bug(_context: JobContext, _name: str) -> None:
    raise ZeroDivisionError("a bug")


_CHILD = """
import os, sys, time
from servicectl.training import confine
confine.die_with(int(sys.argv[2]))
confine.leave_signals_to_parent()
with open("child.new", "w") as file:
    file.write(str(os.getpid()))
os.rename("child.new", "child")
time.sleep(600)
"""

_ORPHAN = """
import os, sys
print("trains", flush=True)
open("go").close()
with open(sys.argv[1], "w") as file:
    file.write("late")
open("written", "w").close()
"""


def _train(context: JobContext, _name: str) -> None:
    """A training child, as the factory floor starts one; its pid stands in the file `child`."""
    os.chdir(context.folder.parents[2])
    child.run("train", {}, dict[str, str], what="training", limits=child.Limits(), program=("-c", _CHILD))


def _orphan(context: JobContext, name: str) -> None:
    """In the first epoch: a trainer that does not die with us, and writes when the fifo `go` is opened."""
    state = context.folder.parents[2]
    if context.job.epoch == 1:
        path = str(context.folder / name)
        with subprocess.Popen([sys.executable, "-c", _ORPHAN, path], cwd=state, stdout=subprocess.PIPE) as trainer:
            assert trainer.stdout is not None
            trainer.stdout.readline()
            say(f"in {name} beside {trainer.pid}")
            told_to_go_on()
    effect(context, name)


def _fill(context: JobContext, name: str) -> None:
    """Leave no room on the disk of the state folder, the first time."""
    from tests.parts.disk import fold_store  # brings pytest along

    state = context.folder.parents[2]
    effect(context, name)
    if not (state / "filled").exists():
        (state / "filled").touch()
        fold_store(state)
        with (state / "big").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)


def _tell(context: JobContext, name: str) -> None:
    log.warning(f"{name} is told")
    effect(context, name)


VERBS: dict[str, Callable[[JobContext, str], None]] = {
    "": effect,
    "file": effect,
    "wait": _wait,
    "train": _train,
    "fill": _fill,
    "tell": _tell,
    "orphan": _orphan,
    "finishing": _finishing,
    "unavailable": _unavailable,
    "bad": _bad,
    "bug": _bug,
}


def act(context: JobContext) -> Result:
    """The action of every kind here."""
    for step in context.job.spec.get("steps", ()):
        name, _, verb = step.partition("=")

        def run(name: str = name, verb: str = verb) -> Done:
            VERBS[verb](context, name)
            return Done(name, _written(context.folder / name, name) if verb in ("file", "orphan") else None)

        context.step(name, run, Done)
    children = tuple(NewJob(**child) for child in context.job.spec.get("children", ()))
    return Result("done", {"by": os.getpid()}, children=children)


def _written(path: Path, text: str) -> Product:
    path.write_text(text * 100)
    fsync_file(path)
    return Product(str(path), sha256_of(path), path.stat().st_size)


KINDS = {name: Kind(name, act) for name in ("work", "child")}


def runner(folder: Path, **options: Any) -> Runner:
    return Runner(folder, KINDS, **{"retries": Retries(max_attempts=3), **options})


def _main(folder: Path, command: str, arguments: list[str]) -> int:
    mine = runner(folder, lock_wait_s=30.0)
    if command == "take":
        with Locks(folder / "locks").held(arguments[0]):
            say("held")
            told_to_go_on()
        return 0
    if command == "open":
        import duckdb

        with duckdb.connect(str(Store(folder).path)):
            say("open")
            told_to_go_on()
        return 0
    if command == "create":
        say("ready")
        told_to_go_on()
        with Store(folder).transaction() as connection:
            connection.execute("INSERT INTO requests VALUES ('made', ?, uuid())", [arguments[0]])
        return 0
    if command == "submit":
        say("ready")
        told_to_go_on()
        submitted = mine.submit(NewJob(**json.loads(arguments[0])))
        say(f"{submitted.job.job_id} {submitted.created}")
        return 0
    if command == "race":
        say("ready")
        told_to_go_on()
    ran: list[Ran] = mine.resume() if command == "resume" else mine.run_with_children(arguments[0])
    for one in ran:
        say(f"{one.job.job_id} {one.job.state} {int(one.exit_status)}")
        if one.error is not None:
            say(f"error: {one.error}")
    return int(worst([one.exit_status for one in ran]))


def main() -> int:
    folder, command, *arguments = sys.argv[1:]
    try:
        return _main(Path(folder), command, arguments)
    except Busy as busy:
        say(f"busy: {busy}")
        return int(busy.exit_status)
    except ServicectlError as error:
        say(f"{type(error).__name__}: {error}")
        return int(error.exit_status)


if __name__ == "__main__":
    sys.exit(main())
