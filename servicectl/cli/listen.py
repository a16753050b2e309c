from __future__ import annotations

from typing import Annotated

import typer

from servicectl.cli.common import epilog, session

HELP = """Serve gRPC JobScheduler/TriggerJob for Service C: `retrain:MODEL`, `drift-check`, `sync-production`.

The job row is committed before the reply; the job runs in a process of its own. Listens on loopback or a UNIX socket
only. SIGTERM ends it; jobs that run go on, and `jobs resume` takes what could not be started."""


def register(app: typer.Typer) -> None:
    app.command("listen", help=HELP, epilog=epilog("servicectl listen --address unix:/run/servicectl/listen.sock"))(
        listen
    )


def listen(
    context: typer.Context,
    address: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Default: [listen] address.")] = None,
) -> None:
    from servicectl.actions import trigger
    from servicectl.listener.server import serve

    at = session(context)
    serving = address or at.world.config.listen.address
    starter = trigger.Starter(at.world)
    serve(serving, starter.trigger, on_ready=lambda bound: print(f"listening on {bound}", flush=True))
