from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from servicectl.cli.common import epilog, lines, session

BACKUP = """Copy the job store to a file, while others work; by default into `backups/` of the state folder.

It holds the jobs, their steps and events, timer slots and alarms; not the files that steps made."""


RESTORE = """Put a backup in the job store's place, also when the present one is damaged; that is kept in `backups/`.

Refused while a job runs. What ran since the backup is forgotten: unfinished jobs of the backup are carried on, and
their finished effects found again."""


def register(app: typer.Typer) -> None:
    app.command("backup", help=BACKUP, epilog=epilog("servicectl jobs backup /var/backups/servicectl-jobs.duckdb"))(
        backup
    )
    app.command("restore", help=RESTORE, epilog=epilog("servicectl jobs restore /var/backups/servicectl-jobs.duckdb"))(
        restore
    )


def backup(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A file that does not exist yet.")] = None,
) -> None:
    from servicectl.actions.backup import backup as action

    at = session(context)
    made = action(at.world, None if file is None else file.expanduser().absolute())
    told = {"file": str(made.file), "bytes": made.bytes, "jobs": made.jobs}
    at.end(told, lines([f"{made.jobs} job(s), {made.bytes / 1e6:.1f} MB: {made.file}"]))


def restore(
    context: typer.Context, file: Annotated[Path, typer.Argument(metavar="FILE", help="What `jobs backup` wrote.")]
) -> None:
    from servicectl.actions.backup import restore as action

    at = session(context)
    done = action(at.world, file.expanduser().absolute())
    kept = None if done.kept is None else str(done.kept)
    told = {
        "file": str(done.file),
        "jobs": done.jobs,
        "unfinished": done.unfinished,
        "epoch": done.epoch,
        "kept": kept,
        "lost": done.lost,
    }
    said = [f"restored {done.jobs} job(s), {done.unfinished} unfinished: servicectl jobs resume"]
    if done.lost:
        said.append(f"{done.lost} job(s) that were made since the backup are not in it")
    if kept is not None:
        said.append(f"what it replaced is kept: {kept}")
    at.end(told, lines(said))
