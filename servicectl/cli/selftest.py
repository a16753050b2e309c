from __future__ import annotations

import os
from typing import Annotated

import typer

from servicectl.cli.common import epilog, session

app = typer.Typer(
    help="Prove the promises on this machine, with real processes.", no_args_is_help=True, rich_markup_mode=None
)

CRASH = """Kill every action at every boundary and at random instants, resume, and compare with a run that nobody killed.

Makes estates in small (redis-server, handler, Services B and C) in a scratch folder; touches nothing of yours. With
fewer kills than there are boundaries it takes a sample, in which every action and every kind of boundary is."""

EXAMPLE = "servicectl selftest crash --kills 1000\nservicectl selftest crash --action publish --at publish/swap/effect"


@app.callback()
def selftest() -> None:
    """A callback keeps this a group."""


@app.command(
    "crash",
    help=CRASH,
    epilog=epilog(EXAMPLE, (1, "something was different, or a boundary was not reached")),
)
def crash(
    context: typer.Context,
    kills: Annotated[int, typer.Option(min=1, help="How many in all; 1000 is every boundary and more.")] = 100,
    workers: Annotated[int | None, typer.Option(min=1, help="Estates side by side; default: the processors.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sample and of the random instants.")] = 0,
    action: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this action; may be repeated.")] = None,
    at: Annotated[
        str | None, typer.Option(metavar="POINT", help="Only this kill: a crash point, 184ms or 184ms:group.")
    ] = None,
    artifacts: Annotated[
        str | None, typer.Option(metavar="azure://NAME", help="In new containers NAME-1, NAME-2 ...; default: folders.")
    ] = None,
) -> None:
    from servicectl.cli import selftest_run

    count = workers or len(os.sched_getaffinity(0))
    selftest_run.crash(
        session(context), kills=kills, workers=count, seed=seed, actions=action or [], at=at, artifacts=artifacts
    )
