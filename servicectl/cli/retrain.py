from __future__ import annotations

from typing import Annotated

import typer

from servicectl.cli.common import SCHEDULED_HELP, epilog, for_timer, session

HELP = """Train a challenger on a fresh snapshot, judge it against the champion, publish it if it is better.

Champion and challenger are scored on the same newest rows, which neither has seen. A first model has floors to pass
instead. An interrupted retrain is carried on from its first unfinished step."""

EXAMPLE = "servicectl retrain Coffee_Recommender --window 90d\nservicectl retrain --all --parallel 2 --no-publish"


def register(app: typer.Typer) -> None:
    statuses = (
        (3, "the challenger could not be judged"),
        (11, "the challenger was rejected (with --detailed-exitcode)"),
        (12, "needs an operator (with --detailed-exitcode)"),
    )
    app.command("retrain", help=HELP, epilog=epilog(EXAMPLE, *statuses))(retrain)


def retrain(
    context: typer.Context,
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL...", help="Configured models.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every configured model.")] = False,
    window: Annotated[str | None, typer.Option(metavar="30d", help="Only the newest rows, back to this long.")] = None,
    parallel: Annotated[int, typer.Option(min=1, help="How many models at once, each in its own process.")] = 1,
    publish: Annotated[bool, typer.Option("--publish/--no-publish", help="Publish a promoted challenger.")] = True,
    hold: Annotated[bool, typer.Option("--hold", help="A promoted challenger waits for `servicectl approve`.")] = False,
    scheduled: Annotated[bool, typer.Option("--scheduled", help=SCHEDULED_HELP)] = False,
    detailed_exitcode: Annotated[bool, typer.Option(help="End in 11 when a challenger was rejected.")] = False,
) -> None:
    from servicectl.actions import retrain as action
    from servicectl.actions import slots
    from servicectl.cli.outcome import end_with
    from servicectl.errors import ExitStatus, UsageError

    at = session(context)
    if every == bool(models):
        raise UsageError("name the models to retrain, or --all", cure="servicectl retrain --help")
    if scheduled and (not every or window or hold or not publish):
        raise UsageError(
            "--scheduled retrains all models, as the configuration says",
            cure='servicectl retrain --all --scheduled; set [schedules.retrain] publish = "hold" or "never"',
        )
    chosen = sorted(at.world.config.models) if every else list(dict.fromkeys(models or []))
    with at.working(f"retrain {', '.join(chosen)}"):
        if for_timer(scheduled=scheduled):
            ran = slots.start(at.world, "retrain", parallel=parallel)
        else:
            ran = action.start(at.world, chosen, window=window, publish=publish, hold=hold, parallel=parallel)
    end_with(at, ran, detailed={"rejected": ExitStatus.REJECTED} if detailed_exitcode else None)
