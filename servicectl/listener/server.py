"""The estate's way to start a job: `myservice.JobScheduler/TriggerJob`, on this machine only.

The call answers when the job's row is committed; running it is the trigger's business.
"""

from __future__ import annotations

import ipaddress
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc

from servicectl import log
from servicectl._pb import myservice_pb2, myservice_pb2_grpc
from servicectl.errors import Busy, ConfigError, ServicectlError, TryAgain, UsageError

MAX_MESSAGE_BYTES = 64 << 10
MAX_CALLS = 8
DRAIN_S = 30.0

_SOCKET_MODE = 0o660
_SOCKET_PATH_LIMIT = 107  # sun_path of unix(7), without its final NUL
_TEXT_LIMIT = 500  # a status text travels in HTTP/2 headers, which have a limit of 8 KiB


def serve(
    address: str,
    trigger: Callable[[str], str],
    *,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    max_calls: int = MAX_CALLS,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve TriggerJob at `address` until SIGTERM or SIGINT, then let calls in hand finish; call from the main thread.

    `trigger` takes the job name and returns the job id once the job is stored; it may run in several threads. Its
    UsageError becomes INVALID_ARGUMENT, TryAgain UNAVAILABLE, everything else INTERNAL. `address` is
    127.0.0.1:PORT, localhost:PORT, [::1]:PORT or unix:PATH; port 0 takes a free one. `on_ready` gets the address
    that is served. At most `max_calls` calls run at a time; others are answered RESOURCE_EXHAUSTED. Raises ConfigError for
    an address that other machines could reach, Busy if another listener has it.
    """
    bindable = checked_address(address)
    server = grpc.server(
        ThreadPoolExecutor(max_calls, thread_name_prefix="trigger"),
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.so_reuseport", 0),  # a second listener must fail, not share the port
        ],
        maximum_concurrent_rpcs=max_calls,
    )
    myservice_pb2_grpc.add_JobSchedulerServicer_to_server(_Scheduler(trigger), server)  # type: ignore[no-untyped-call]  # generated
    with _ends() as wait_for_end:
        served = _bind(server, bindable)
        server.start()
        if on_ready is not None:
            on_ready(served)
        wait_for_end()
        server.stop(DRAIN_S).wait()


def checked_address(address: str) -> str:
    """The address in gRPC's form, if only this machine can reach it. Raises ConfigError otherwise."""
    path = re.fullmatch(r"unix:(?://(?=/))?(.+)", address)
    if path:
        return f"unix:{Path(path[1]).absolute()}"
    parts = re.fullmatch(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]]+)):(?P<port>\d{1,5})", address)
    if not parts or int(parts["port"]) > 65535:
        raise ConfigError(
            f"listen.address {address!r} is not an address",
            cure="write it as 127.0.0.1:50054 or unix:/run/servicectl.sock",
        )
    # Not looked up: what `localhost` means must not depend on a resolver.
    host = "127.0.0.1" if parts["host"] == "localhost" else parts["six"] or parts["host"]
    if not _is_loopback(host):
        raise ConfigError(
            f"listen.address {address!r} can be reached from other machines, and the listener has no TLS yet",
            cure="use 127.0.0.1:50054 or unix:/run/servicectl.sock",
        )
    return f"[{host}]:{parts['port']}" if parts["six"] else f"{host}:{parts['port']}"


class _Scheduler(myservice_pb2_grpc.JobSchedulerServicer):
    def __init__(self, trigger: Callable[[str], str]) -> None:
        self._trigger = trigger

    def TriggerJob(  # noqa: N802 -- the name on the wire
        self, request: myservice_pb2.TriggerJobRequest, context: grpc.ServicerContext
    ) -> myservice_pb2.TriggerJobResponse:
        try:
            job_id = self._trigger(request.job_name)
        except ServicectlError as error:
            context.abort(_status(error), _one_line(str(error)))
        except Exception as error:  # noqa: BLE001 -- the server outlives a defect; its text stays in our own log
            log.error(f"TriggerJob {request.job_name!r} failed: {type(error).__name__}: {error}")
            context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: see the listener's log")
        return myservice_pb2.TriggerJobResponse(success=True, job_id=job_id)


def _status(error: ServicectlError) -> grpc.StatusCode:
    match error:
        case UsageError():
            return grpc.StatusCode.INVALID_ARGUMENT
        case TryAgain():
            return grpc.StatusCode.UNAVAILABLE
        case _:
            return grpc.StatusCode.INTERNAL


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_TEXT_LIMIT]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bind(server: grpc.Server, address: str) -> str:
    path = Path(address.removeprefix("unix:")) if address.startswith("unix:") else None
    in_use = Busy(
        f"cannot listen on {address}: another process has it", cure="end it, or choose another listen.address"
    )
    if path is not None:
        if not path.parent.is_dir():
            raise ConfigError(f"the folder of {address} does not exist", cure=f"mkdir -m 750 {path.parent}")
        if len(os.fsencode(path)) > _SOCKET_PATH_LIMIT:
            raise ConfigError(f"{address} is too long for a socket", cure=f"at most {_SOCKET_PATH_LIMIT} bytes")
        if _answers(path):
            raise in_use  # gRPC would unlink a living listener's socket and take its place
    before = os.umask(0o777 & ~_SOCKET_MODE)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        if path is not None:
            raise ConfigError(f"cannot listen on {address}: {error}", cure="check the folder's permissions") from error
        raise in_use from error
    finally:
        os.umask(before)
    return address if path is not None else f"{address.rpartition(':')[0]}:{port}"


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


@contextmanager
def _ends() -> Iterator[Callable[[], None]]:
    """A function that returns once SIGTERM or SIGINT has come, also if it came before the call."""
    reader, writer = os.pipe()

    def told(*_: object) -> None:
        os.write(writer, b".")

    def wait() -> None:
        os.read(reader, 1)

    # A pipe, not threading.Event: setting one from a handler can deadlock with the wait it interrupts. The signals are
    # not blocked either, as children of the jobs would inherit that.
    kept = {end: signal.signal(end, told) for end in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield wait
    finally:
        for end, handler in kept.items():
            signal.signal(end, handler)
        os.close(reader)
        os.close(writer)
