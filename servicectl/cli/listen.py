from __future__ import annotations

from typing import Annotated

import typer

from servicectl.cli.common import epilog, session

HELP = """Serve gRPC: the estate's JobScheduler/TriggerJob and servicectl.v1.Jobs (docs/listener.md).

A job is committed before the reply and runs in a process of its own, [listen] max_jobs at a time. Listens on loopback
or a UNIX socket; other addresses need TLS and client certificates or a token. SIGTERM ends it when the calls in hand
are answered; jobs that run go on, and `jobs resume` takes what could not be started."""


def register(app: typer.Typer) -> None:
    app.command("listen", help=HELP, epilog=epilog("servicectl listen --address unix:/run/servicectl/listen.sock"))(
        listen
    )


def listen(
    context: typer.Context,
    address: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Default: [listen] address.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines in without TLS or without a check of the caller.")
    ] = False,
) -> None:
    import sys
    from pathlib import Path

    import msgspec

    from servicectl.actions.trigger import Desk
    from servicectl.actions.world import World
    from servicectl.listener.address import parsed
    from servicectl.listener.processes import Processes
    from servicectl.listener.security import protection
    from servicectl.listener.server import Limits, serve

    config = session(context).world.config
    assert config.path is not None
    # A caller waits for its answer: it is told UNAVAILABLE long before a command would give up on the store.
    patience = msgspec.structs.replace(config.jobs, lock_wait_s=min(config.jobs.lock_wait_s, 10.0))
    world = World(msgspec.structs.replace(config, jobs=patience), trigger="grpc")
    where = parsed(address or config.listen.address)
    trusted = protection(config.listen, Path(config.path).absolute().parent, where, insecure=insecure)
    processes = Processes(
        [sys.executable, "-m", "servicectl", "--config", config.path, "jobs", "resume"], config.listen.max_jobs
    )
    limits = Limits(max_calls=config.listen.max_calls, calls_per_second=config.listen.calls_per_second)
    try:
        serve(
            where,
            Desk(world, processes.start),
            trusted,
            limits,
            on_ready=lambda bound: print(f"listening on {bound}", flush=True),
        )
    finally:
        processes.close()
