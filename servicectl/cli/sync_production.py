from __future__ import annotations

from typing import Annotated

import typer

from servicectl.cli.common import SCHEDULED_HELP, epilog, for_timer, session

HELP = """Put every production model into Redis, as the artifact store's pointers say.

First finishes publishes that were interrupted. Each model is verified by digest; one that cannot be verified never
keeps the others from being served. Names are withdrawn only on positive evidence (a deprecated row)."""


STATUS = (3, "the registry has nothing in production although Redis names models: nothing was removed")


def register(app: typer.Typer) -> None:
    app.command("sync-production", help=HELP, epilog=epilog("servicectl sync-production", STATUS))(sync_production)


def sync_production(
    context: typer.Context,
    allow_remove: Annotated[
        bool, typer.Option(help="Also withdraw names that have no row at all, down to none.")
    ] = False,
    scheduled: Annotated[bool, typer.Option("--scheduled", help=SCHEDULED_HELP)] = False,
) -> None:
    from servicectl.actions import slots
    from servicectl.actions import sync_production as action
    from servicectl.cli.outcome import end_with
    from servicectl.errors import UsageError

    at = session(context)
    if scheduled and allow_remove:
        raise UsageError(
            "--allow-remove needs an operator, not a timer", cure="servicectl sync-production --allow-remove"
        )
    with at.working("sync-production"):
        if for_timer(scheduled=scheduled):
            ran = slots.start(at.world, "sync-production")
        else:
            ran = action.start(at.world, allow_remove=allow_remove)
    end_with(at, ran)
