from __future__ import annotations

from typing import Annotated

import typer

from servicectl.cli.common import epilog, session

HELP = """Say, one line each, whether every party is reachable, right and safe, and what to type if not."""


def register(app: typer.Typer) -> None:
    app.command("doctor", help=HELP, epilog=epilog("servicectl doctor --create-view", (1, "a check failed")))(doctor)


def doctor(
    context: typer.Context,
    create_view: Annotated[
        bool, typer.Option("--create-view", help="Make the view `features` that Service C reads.")
    ] = False,
) -> None:
    from servicectl.actions import doctor as action
    from servicectl.cli.tables import print_check
    from servicectl.errors import ExitStatus

    at = session(context)
    if create_view:
        action.create_view(at.world)
    checks = []
    for check in action.examine(at.world):
        checks.append(check)
        if not at.as_json:
            print_check(at.screen, check)
    failed = any(check.health == "failed" for check in checks)
    at.end({"checks": checks}, lambda: None, ExitStatus.FAILED if failed else ExitStatus.OK)
