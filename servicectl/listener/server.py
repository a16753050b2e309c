"""The gRPC server: the estate's `myservice.JobScheduler`, our `servicectl.v1.Jobs`, health and reflection.

A call that starts a job answers when the job's row is committed; running it is a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from servicectl import log
from servicectl._pb import myservice_pb2, myservice_pb2_grpc
from servicectl._pb.v1 import jobs_pb2, jobs_pb2_grpc
from servicectl.actions.trigger import Desk
from servicectl.clock import SYSTEM, Clock
from servicectl.listener.address import Address, bind
from servicectl.listener.guard import Guard, TokenBucket
from servicectl.listener.notify import tell, watchdog_s
from servicectl.listener.security import Protection
from servicectl.listener.services import Asking, Jobs, Scheduler

MAX_MESSAGE_BYTES = 64 << 10
MAX_STREAMS = 16  # each may read the whole history of a job whenever the store changes
DRAIN_S = 30.0

_THREADS = 4  # the store lets in one at a time anyway

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in ((myservice_pb2, "JobScheduler"), (jobs_pb2, "Jobs"))
)


@dataclass(frozen=True)
class Limits:
    max_calls: int = 100
    calls_per_second: float = 20.0
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_streams: int = MAX_STREAMS


def serve(
    address: Address,
    desk: Desk,
    protection: Protection,
    limits: Limits,
    *,
    clock: Clock = SYSTEM,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then let calls in hand finish; call from the main thread.

    `on_ready` gets the address that is served. Raises ConfigError for an address that cannot be had, Busy if another
    process has it.
    """
    asyncio.run(_serve(address, desk, protection, limits, clock, on_ready))


async def _serve(
    address: Address,
    desk: Desk,
    protection: Protection,
    limits: Limits,
    clock: Clock,
    on_ready: Callable[[str], None] | None,
) -> None:
    told_to_end = _told_to_end()
    bucket = TokenBucket(limits.calls_per_second, limits.max_calls, clock)
    guard = Guard(token=protection.token, bucket=bucket, max_streams=limits.max_streams)
    server = grpc.aio.server(
        interceptors=[guard],
        options=[
            ("grpc.max_receive_message_length", limits.max_message_bytes),
            ("grpc.so_reuseport", 0),  # a second listener must fail, not share the port
            ("grpc.keepalive_time_ms", 60_000),  # a watcher whose machine died is noticed
            ("grpc.max_connection_idle_ms", 600_000),
        ],
        maximum_concurrent_rpcs=limits.max_calls,
    )
    state = health.aio.HealthServicer()  # type: ignore[attr-defined]  # there, but not in the stubs
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="call") as threads:
        _register(server, Asking(desk, threads), state)
        served = bind(server, address, protection.credentials)
        for name in SERVICES:
            await state.set(name, health_pb2.HealthCheckResponse.SERVING)
        await server.start()
        if on_ready is not None:
            on_ready(served)
        tell(f"READY=1\nSTATUS=listening on {served}")
        threads.submit(desk.carry_on)
        async with _signs_of_life():
            await told_to_end.wait()
            tell("STOPPING=1")
            log.info("the listener ends: calls in hand finish, jobs go on by themselves")
            await state.enter_graceful_shutdown()
            stopping = asyncio.ensure_future(server.stop(DRAIN_S))
            await asyncio.sleep(0)  # the stop begins: no stream is opened behind those that are ended now
            guard.end_streams()
            await stopping


def _register(server: grpc.aio.Server, asking: Asking, state: Any) -> None:
    myservice_pb2_grpc.add_JobSchedulerServicer_to_server(Scheduler(asking), server)  # type: ignore[no-untyped-call]  # generated
    jobs_pb2_grpc.add_JobsServicer_to_server(Jobs(asking), server)  # type: ignore[no-untyped-call]  # generated
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)


def _told_to_end() -> asyncio.Event:
    """Set by SIGTERM and SIGINT; they are not blocked, as the processes of jobs would inherit that."""
    told = asyncio.Event()
    for end in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(end, told.set)
    return told


@contextlib.asynccontextmanager
async def _signs_of_life() -> AsyncIterator[None]:
    """Feed systemd's watchdog from the loop that serves, so that a loop that hangs is noticed."""
    every = watchdog_s()

    async def feed() -> None:
        while every:
            tell("WATCHDOG=1")
            await asyncio.sleep(every)

    feeding = asyncio.ensure_future(feed())
    try:
        yield
    finally:
        feeding.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await feeding
