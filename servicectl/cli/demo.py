from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from servicectl.cli.common import epilog, session

HELP = """See the whole loop on real data: a drifting model is noticed, retrained, proven better, published and served.

Makes a small estate in a scratch folder (Redis, a DuckDB handler, Services B and C as processes) and runs the real
commands against it. The folder stays, with a configuration to try other commands on."""


def register(app: typer.Typer) -> None:
    app.command("demo", help=HELP, epilog=epilog("servicectl demo --crash", (1, "a stage did not happen")))(demo)


def demo(
    context: typer.Context,
    crash: Annotated[
        bool, typer.Option("--crash", help="Kill the retrain and the publish midway, then resume.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Where to make the estate; default: a new ./servicectl-demo-<time>.")
    ] = None,
    redis: Annotated[
        str, typer.Option(help="auto: redis-server on PATH, else pure Python; or: server, python.")
    ] = "auto",
) -> None:
    from servicectl.cli import demo_run

    demo_run.start(session(context), crash=crash, folder=folder, redis=redis)
