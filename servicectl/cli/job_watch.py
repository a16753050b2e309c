"""Following a job that another process may be running."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from servicectl.cli import job_views
from servicectl.errors import ExitStatus
from servicectl.jobs.model import Event, State

if TYPE_CHECKING:
    from servicectl.cli.session import Session

_POLL_S = 0.5

Show = Callable[[dict[str, Any], list[Event]], None]


def follow(at: Session, job_id: str) -> None:
    """Show a job until it ends or is found interrupted: in place on a terminal, elsewhere each event as one line."""
    with _shown(at) as show:
        while True:
            job, detail, events = _seen(at, job_id)
            show(detail, events)
            if job.ended or detail["state"] == "INTERRUPTED":
                break
            at.world.clock.sleep(_POLL_S)
    status = ExitStatus(job.exit_status or 0) if job.state is State.COMPLETED else ExitStatus.FAILED
    told = job_views.view(job, interrupted=not job.ended)
    at.end(told, lambda: None, status if job.ended else ExitStatus.TRY_AGAIN)


def _seen(at: Session, job_id: str) -> tuple[Any, dict[str, Any], list[Event]]:
    runner = at.world.runner
    job = runner.table.get(job_id)
    steps, events = runner.table.steps(job_id), runner.table.events(job_id)  # after the job: an ended one has no later
    children = runner.table.children(job_id) if job.ended else []
    return job, job_views.detail(job, steps, events, children, interrupted=runner.is_interrupted(job)), events


@contextmanager
def _shown(at: Session) -> Iterator[Show]:
    if at.as_json:
        yield lambda _detail, _events: None
    elif at.screen.is_terminal:
        with _in_place(at) as show:
            yield show
    else:
        yield _lines(at)


def _lines(at: Session) -> Show:
    seen = 0

    def show(_detail: dict[str, Any], events: list[Event]) -> None:
        nonlocal seen
        for event in events[seen:]:
            moment = job_views.aware(event.happened_at).astimezone().isoformat(timespec="seconds")
            at.screen.line(f"{moment}  {event.to_state:<10} {event.edge:<12} {event.detail or ''}")
        seen = len(events)

    return show


@contextmanager
def _in_place(at: Session) -> Iterator[Show]:
    """Each look replaces the one before; the last one stays."""
    from io import StringIO

    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from servicectl.cli.screen import Screen

    def show(detail: dict[str, Any], _events: list[Event]) -> None:
        drawing = Screen()
        drawn = StringIO()
        drawing.console = Console(file=drawn, force_terminal=True, highlight=False, width=at.screen.console.width)
        job_views.print_detail(drawing, detail, at.world.clock.now())
        live.update(Text.from_ansi(drawn.getvalue()), refresh=True)

    with Live(console=at.screen.console, auto_refresh=False) as live:
        yield show
