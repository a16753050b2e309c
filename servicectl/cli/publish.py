from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from servicectl.cli.common import epilog, session

HELP = """Publish a model's newest promoted challenger (after `retrain --no-publish`), or finish a publish.

Exactly the model that was judged is published. If another version went into production since, the challenger is
superseded and nothing changes. --plan says what would be done, to the last ETag, and touches nothing."""

APPROVE = """Let a publish that was held (`publish --hold`, `retrain --hold`) go on."""


def register(app: typer.Typer) -> None:
    example = "servicectl publish Coffee_Recommender\nservicectl publish Coffee_Recommender --plan --json > plan.json"
    app.command("publish", help=HELP, epilog=epilog(example))(publish)
    app.command("approve", help=APPROVE, epilog=epilog("servicectl approve 1f3a09bc"))(approve)


def publish(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be done.")] = False,
    apply: Annotated[
        Path | None, typer.Option(metavar="PLAN", help="Do what this plan says; a stale one is refused.")
    ] = None,
    hold: Annotated[bool, typer.Option("--hold", help="Wait for `servicectl approve`.")] = False,
) -> None:
    from servicectl.actions import planning
    from servicectl.actions import publish as action
    from servicectl.cli.outcome import end_with
    from servicectl.errors import UsageError

    at = session(context)
    if plan + hold + (apply is not None) > 1:
        raise UsageError("--plan, --apply and --hold exclude each other", cure="servicectl publish --help")
    if plan:
        from servicectl.cli.tables import print_plan

        planned = planning.plan(at.world, model)
        at.end(msgspec.to_builtins(planned), lambda: print_plan(at.screen, planned))
    with at.working(f"publish {model}"):
        if apply is not None:
            ran = planning.apply(at.world, model, _read(apply))
        else:
            ran = planning.hold(at.world, model) if hold else action.start(at.world, model)
    end_with(at, ran)


def approve(
    context: typer.Context,
    job: Annotated[str, typer.Argument(metavar="JOB", help="The held publish: its id, or its last characters.")],
) -> None:
    from servicectl.actions import planning
    from servicectl.cli.outcome import end_with

    at = session(context)
    with at.working("approve"):
        ran = planning.approve(at.world, at.world.runner.table.find(job))
    end_with(at, ran)


def _read(path: Path) -> bytes:
    from servicectl.errors import UsageError

    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"the plan {path} cannot be read: {error.strerror}") from None
