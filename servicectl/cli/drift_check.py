from __future__ import annotations

from typing import Annotated

import typer

from servicectl.cli.common import epilog, session

HELP = """Ask Service C for drift, judge its answer, write it down, and retrain what uses a drifted feature.

Scores go into model_metadata and Redis, every decision into drift_results, changes of state sound an alarm. What was
asked and not answered is "not measured", never "no drift", and always ends in status 3."""


def register(app: typer.Typer) -> None:
    statuses = (
        (3, "something could not be measured"),
        (10, "drift found (with --detailed-exitcode)"),
        (12, "needs an operator (with --detailed-exitcode)"),
    )
    app.command("drift-check", help=HELP, epilog=epilog("servicectl drift-check --queue-only", *statuses))(drift_check)


def drift_check(
    context: typer.Context,
    queue_only: Annotated[bool, typer.Option(help="Queue the retrains; `jobs resume` runs them.")] = False,
    detailed_exitcode: Annotated[bool, typer.Option(help="End in 10 when drift was found.")] = False,
) -> None:
    from servicectl.actions import drift_check as action
    from servicectl.cli.outcome import end_with
    from servicectl.errors import ExitStatus

    at = session(context)
    with at.working("drift-check"):
        ran = action.start(at.world, queue_only=queue_only)
    end_with(at, ran, detailed={"drift": ExitStatus.DRIFT_FOUND} if detailed_exitcode else None)
