from __future__ import annotations

from typing import Annotated

import typer

from servicectl.cli.common import epilog, session

HELP = """Put an earlier version of a model back into production, under a higher generation.

What it replaces is marked as withdrawn: neither `publish` nor a later rollback takes it again, only --to does."""


def register(app: typer.Typer) -> None:
    app.command("rollback", help=HELP, epilog=epilog("servicectl rollback Coffee_Recommender --to 0.1.3"))(rollback)


def rollback(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Default: the newest one before that was not withdrawn.")
    ] = None,
) -> None:
    from servicectl.actions import rollback as action
    from servicectl.cli.outcome import end_with

    at = session(context)
    with at.working(f"rollback {model}"):
        ran = action.start(at.world, model, to=to)
    end_with(at, ran)
