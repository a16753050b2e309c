from __future__ import annotations

from typing import Annotated

import typer

from servicectl.cli.common import SCHEDULED_HELP, epilog, for_timer, session

HELP = """Measure drift (Service C or builtin), judge it, write it down, and retrain what uses a drifted feature.

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
    explain: Annotated[
        bool, typer.Option("--explain", help="Print the evidence, with a histogram of each drifted feature.")
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Check nothing: measure how far each feature moves by itself, and store it."),
    ] = False,
    budget: Annotated[
        float | None,
        typer.Option(
            min=1e-6, max=0.5, help="With --calibrate: the chance of any false alarm in one check. [drift] false_alarms"
        ),
    ] = None,
    scheduled: Annotated[bool, typer.Option("--scheduled", help=SCHEDULED_HELP)] = False,
    detailed_exitcode: Annotated[bool, typer.Option(help="End in 10 when drift was found.")] = False,
) -> None:
    from servicectl.actions import drift_check as action
    from servicectl.actions import slots
    from servicectl.cli.outcome import end_with
    from servicectl.errors import ExitStatus, UsageError

    at = session(context)
    if calibrate:
        from servicectl.actions.drift_calibrate import calibrate as measure
        from servicectl.cli.drift_views import print_calibration

        with at.working("drift-check --calibrate"):
            found = measure(at.world, budget)
        at.end({"calibration": found}, lambda: print_calibration(at.screen, found))
    if scheduled and queue_only:
        raise UsageError("--scheduled takes what it does from the configuration", cure='set [drift] retrain = "queue"')
    with at.working("drift-check"):
        ran = (
            slots.start(at.world, "drift-check")
            if for_timer(scheduled=scheduled)
            else action.start(at.world, queue_only=queue_only)
        )
    if explain and not at.as_json:
        from servicectl.actions.drift_explain import evidence
        from servicectl.cli.drift_views import print_decay, print_evidence

        for one in ran:
            if one.job.kind == "drift-check" and one.job.result is not None:
                print_evidence(at.screen, evidence(at.world, one.job.result))
                print_decay(at.screen, one.job.result.get("decay", ()))
    end_with(at, ran, detailed={"drift": ExitStatus.DRIFT_FOUND} if detailed_exitcode else None)
