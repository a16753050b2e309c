from __future__ import annotations

from typing import Annotated

import typer

from servicectl.cli.common import epilog, session

app = typer.Typer(
    help="What was told to an operator: drift, broken data, what could not be measured.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(
    "list",
    help="Alarms that nobody has acknowledged, newest first, and the sinks that have not taken them yet.",
    epilog=epilog("servicectl alarms list --all"),
)
def list_alarms(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Also the acknowledged ones and the all-clears.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
) -> None:
    from servicectl.cli.alarm_views import print_alarms, views

    at = session(context)
    found = at.world.alarms.newest(limit=limit, open_only=not every)
    told = views(found, at.world.alarms.deliveries())
    at.end({"alarms": told}, lambda: print_alarms(at.screen, told, at.world.clock.now()))


@app.command(
    "ack",
    help="Acknowledge alarms: somebody has seen them, and no reminder follows. The verdict itself does not change.",
    epilog=epilog("servicectl alarms ack 1f3a09bc"),
)
def acknowledge(
    context: typer.Context,
    alarms: Annotated[list[str], typer.Argument(metavar="ALARM...", help="Ids, or their last characters.")],
) -> None:
    from servicectl.cli.alarm_views import views
    from servicectl.cli.common import lines
    from servicectl.store import owner

    at = session(context)
    done = at.world.alarms.acknowledge(alarms, str(owner()["user"]))
    texts = [f"{alarm.short_id}: acknowledged by {alarm.acknowledged_by}" for alarm in done]
    at.end({"alarms": views(done, at.world.alarms.deliveries())}, lines(texts))
