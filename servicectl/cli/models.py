from __future__ import annotations

from typing import Annotated

import typer

from servicectl.cli.common import epilog, session

HELP = """What is in production: which version, since when, from which job, and whether the stores agree."""

app = typer.Typer(
    help=HELP, rich_markup_mode=None, invoke_without_command=True, epilog=epilog("servicectl models --json")
)

HISTORY = """Every generation of a model, newest first: version, from when until when, from which job, snapshot and gate.

Told by the artifact store alone; the jobs on this machine are not needed for it."""

AT = """What was in production at a time: for each model the version, its job, snapshot and gate numbers."""


@app.callback()
def models(context: typer.Context) -> None:
    if context.invoked_subcommand is not None:
        return
    from servicectl.actions import models as action
    from servicectl.cli.tables import print_models

    at = session(context)
    with at.working("models"):
        found = action.look(at.world)
    at.end({"models": found}, lambda: print_models(at.screen, found))


@app.command("history", help=HISTORY, epilog=epilog("servicectl models history Coffee_Recommender"))
def history(context: typer.Context, model: Annotated[str, typer.Argument(metavar="MODEL")]) -> None:
    from servicectl.actions import history as action
    from servicectl.cli.tables import print_changes

    at = session(context)
    with at.working("history"):
        found = action.look(at.world, model)
    at.end({"model": model, "history": found}, lambda: print_changes(at.screen, found))


@app.command("at", help=AT, epilog=epilog("servicectl models at 2026-11-01T12:00"))
def at_time(
    context: typer.Context,
    time: Annotated[str, typer.Argument(metavar="TIME", help="ISO 8601; without a zone it is UTC.")],
    model: Annotated[list[str] | None, typer.Argument(metavar="[MODEL...]", help="Default: every known model.")] = None,
) -> None:
    from servicectl.actions import history as action
    from servicectl.actions.models import known_models
    from servicectl.cli.common import lines
    from servicectl.cli.tables import print_changes

    at = session(context)
    moment = action.parse_moment(time)
    with at.working("models at"):
        found = action.at(at.world, moment, list(model or known_models(at.world)))

    def render() -> None:
        print_changes(at.screen, [one for one in found.values() if one is not None])
        lines([f"{name}: nothing on record was in production" for name, one in found.items() if one is None])()

    at.end({"at": moment, "models": found}, render)
