"""The job commands that timers and eyes run most; light to import, so that __main__ can take the short way to them."""

from __future__ import annotations

from servicectl.cli.session import Session

LIST_LIMIT = 25


def list_jobs(at: Session, *, limit: int | None = LIST_LIMIT, unfinished: bool = False, failed: bool = False) -> None:
    from servicectl.cli import job_views

    runner = at.world.runner
    found = runner.table.newest(limit=limit or 1_000_000, unfinished_only=unfinished, failed_only=failed)
    interrupted = runner.interrupted(found)
    shown = [job_views.view(job, interrupted=job.job_id in interrupted) for job in found]
    at.end({"jobs": shown}, lambda: job_views.print_list(at.screen, shown, at.world.clock.now()))


def resume(at: Session, job: str | None = None) -> None:
    from servicectl.cli.outcome import end_with

    runner = at.world.runner
    if job is not None:
        with at.working("resume"):
            ran = runner.run_with_children(runner.table.find(job).job_id)
        end_with(at, ran)
    from servicectl import log
    from servicectl.actions import slots

    with at.working("resume"):
        wrong = slots.take_missed(at.world)
        for error in wrong:
            log.error(str(error))
        ran = runner.resume()
    end_with(at, ran, also=[error.exit_status for error in wrong])
