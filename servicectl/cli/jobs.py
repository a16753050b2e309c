from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from servicectl.cli import job_backup
from servicectl.cli.common import epilog, lines, session
from servicectl.cli.job_commands import LIST_LIMIT
from servicectl.config import Config
from servicectl.errors import UsageError

app = typer.Typer(
    help="Durable work: what ran, what is under way, what died and can be carried on.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

CANCEL = """Stop a job: a waiting one at once, a running one at its next step.

One that has not stopped after --grace seconds is sent SIGTERM, which is acted upon at once between effects. After as
long again the command says how to insist and ends with 75: with --kill its process is killed, once it is proven to be
the one on record, and the job is cancelled in its place."""

JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or its last characters.")]


@app.command(
    "list",
    help="Jobs, newest first. INTERRUPTED: the process died; `jobs resume` carries it on.",
    epilog=epilog("servicectl jobs list --unfinished"),
)
def list_jobs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = LIST_LIMIT,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Only what waits, runs or was interrupted.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only what failed: nothing tries these again.")] = False,
    every: Annotated[bool, typer.Option("--all", help="No limit.")] = False,
) -> None:
    from servicectl.cli import job_commands

    if failed and unfinished:
        raise UsageError("no job is both failed and unfinished", cure="give one of --failed and --unfinished")
    job_commands.list_jobs(session(context), limit=None if every else limit, unfinished=unfinished, failed=failed)


@app.command(
    "show",
    help="One job: its steps, attempts, events, who ran it, why it failed and what to type.",
    epilog=epilog("servicectl jobs show 1f3a09bc"),
)
def show(context: typer.Context, job: JobId) -> None:
    from servicectl.cli import job_views

    at = session(context)
    runner = at.world.runner
    found = runner.table.find(job)
    detail = job_views.detail(
        found,
        runner.table.steps(found.job_id),
        runner.table.events(found.job_id),
        runner.table.children(found.job_id),
        interrupted=runner.is_interrupted(found),
    )
    at.end(detail, lambda: job_views.print_detail(at.screen, detail, at.world.clock.now()))


@app.command(
    "resume",
    help="Carry on every interrupted or due job, or the named one. The resume timer runs this every five minutes.",
    epilog=epilog("servicectl jobs resume", (3, "something could not be measured or judged")),
)
def resume(
    context: typer.Context,
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="A job's id; default: all that is due.")] = None,
) -> None:
    from servicectl.cli import job_commands

    job_commands.resume(session(context), job)


@app.command(
    "cancel",
    help=CANCEL,
    epilog=epilog("servicectl jobs cancel 1f3a09bc\nservicectl jobs cancel 1f3a09bc --grace 30 --kill"),
)
def cancel(
    context: typer.Context,
    job: JobId,
    grace: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for each.")] = 10.0,
    kill: Annotated[bool, typer.Option("--kill", help="At last kill its process by SIGKILL.")] = False,
) -> None:
    from servicectl.actions.cancel import cancel as action

    at = session(context)
    found = at.world.runner.table.find(job)
    with at.working("cancel"):
        said = action(at.world.runner, found, grace_s=grace, kill=kill, clock=at.world.clock)
    told = {"job_id": said.job.job_id, "state": said.job.state.value, "says": said.says}
    at.end(told, lines([said.says]), said.status)


@app.command(
    "retry",
    help="Make a failed or cancelled job runnable again and run it; finished steps stay finished, but for --from.",
    epilog=epilog(
        "servicectl jobs retry 1f3a09bc\nservicectl jobs retry 1f3a09bc --from train",
        (3, "something could not be measured or judged"),
    ),
)
def retry(
    context: typer.Context,
    job: JobId,
    from_step: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="Do this step and all after it again.")
    ] = None,
    queue_only: Annotated[bool, typer.Option("--queue-only", help="Leave it to `jobs resume`.")] = False,
) -> None:
    from servicectl.cli.outcome import end_with

    at = session(context)
    runner = at.world.runner
    reopened = runner.table.retry(runner.table.find(job).job_id, from_step)
    if queue_only:
        at.end({"job_id": reopened.job_id, "state": reopened.state.value}, lines([f"job {reopened.short_id} waits"]))
    with at.working("retry"):
        ran = runner.run_with_children(reopened.job_id)
    end_with(at, ran)


@app.command(
    "prune",
    help="Delete ended jobs and their work files older than --days (default: [jobs] keep_days).",
    epilog=epilog("servicectl jobs prune --days 90 --dry-run"),
)
def prune(
    context: typer.Context,
    days: Annotated[int | None, typer.Option(min=0, help="Keep this many days.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, delete nothing.")] = False,
) -> None:
    at = session(context)
    before = at.world.clock.now() - timedelta(days=_days(at.world.config, days))
    gone = at.world.runner.prune(before, dry_run=dry_run)
    verb = "would delete" if dry_run else "deleted"
    told = [f"{verb} {len(gone.jobs)} job(s)"]
    if gone.leftovers:
        told.append(f"{verb} work files of {len(gone.leftovers)} job(s) that an earlier prune left behind")
    at.end({"pruned": gone.jobs, "leftovers": gone.leftovers, "dry_run": dry_run}, lines(told))


@app.command(
    "watch",
    help="Follow a job until it ends: in place on a terminal, one line per event in a pipe. Ends in the job's status.",
    epilog=epilog("servicectl jobs watch 1f3a09bc"),
)
def watch(context: typer.Context, job: JobId) -> None:
    from servicectl.cli.job_watch import follow

    at = session(context)
    follow(at, at.world.runner.table.find(job).job_id)


job_backup.register(app)


def _days(config: Config, days: int | None) -> int:
    return config.jobs.keep_days if days is None else days
