from __future__ import annotations

from typing import Annotated

import typer

from servicectl.cli.common import epilog, session

HELP = """Publish a model's newest promoted challenger (after `retrain --no-publish`), or finish a publish.

Exactly the model that was judged is published. If another version went into production since, the challenger is
superseded and nothing changes."""


def register(app: typer.Typer) -> None:
    app.command("publish", help=HELP, epilog=epilog("servicectl publish Coffee_Recommender"))(publish)


def publish(context: typer.Context, model: Annotated[str, typer.Argument(metavar="MODEL")]) -> None:
    from servicectl.actions import publish as action
    from servicectl.cli.outcome import end_with

    at = session(context)
    with at.working(f"publish {model}"):
        ran = action.start(at.world, model)
    end_with(at, ran)
