from __future__ import annotations

import typer

from servicectl.cli.common import epilog, session

HELP = """What is in production: which version, since when, from which job, and whether the stores agree."""


def register(app: typer.Typer) -> None:
    app.command("models", help=HELP, epilog=epilog("servicectl models --json"))(models)


def models(context: typer.Context) -> None:
    from servicectl.actions import models as action
    from servicectl.cli.tables import print_models

    at = session(context)
    with at.working("models"):
        found = action.look(at.world)
    at.end({"models": found}, lambda: print_models(at.screen, found))
