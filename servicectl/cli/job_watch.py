"""Following a job that another process may be running."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servicectl.cli import job_views
from servicectl.errors import ExitStatus
from servicectl.jobs.model import State

if TYPE_CHECKING:
    from servicectl.cli.session import Session

_POLL_S = 0.5


def follow(at: Session, job_id: str) -> None:
    """Print each event once, until the job ends or is found interrupted."""
    runner = at.world.runner
    seen = 0
    while True:
        job = runner.table.get(job_id)
        events = runner.table.events(job_id)  # after the job: an ended one has no later events
        for event in events[seen:] if not at.as_json else []:
            at.screen.line(f"{event.happened_at:%H:%M:%S}  {event.to_state:<10} {event.edge:<12} {event.detail or ''}")
        seen = len(events)
        interrupted = runner.is_interrupted(job)
        if job.ended or interrupted:
            break
        at.world.clock.sleep(_POLL_S)
    status = ExitStatus(job.exit_status or 0) if job.state is State.COMPLETED else ExitStatus.FAILED
    shown = job_views.view(job, interrupted=interrupted)
    at.end(shown, lambda: None, ExitStatus.TRY_AGAIN if interrupted else status)
