"""What the gRPC workers of the miniature share: arguments, a loopback server, `ready` on stdout, the end at SIGTERM."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

_ENDS = {signal.SIGTERM, signal.SIGINT}
_THREADS = 8


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--redis", required=True, metavar="URL")
    parser.add_argument("--port", required=True, type=int, help="on 127.0.0.1")
    return parser


def connection(url: str, socket_timeout_s: float) -> Any:
    """A client that repeats nothing. Any: its annotations mix text, bytes and None for every answer."""
    return redis.Redis.from_url(
        url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=socket_timeout_s, socket_connect_timeout=5.0
    )


def hold_signals() -> None:
    """Keep SIGTERM and SIGINT for serve(); to be called before the first thread is started."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)


def serve(port: int, register: Callable[[grpc.Server], None]) -> None:
    """Serve on 127.0.0.1 until SIGTERM or SIGINT, then let calls in hand finish for a second."""
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=[("grpc.so_reuseport", 0)])
    register(server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print("ready", flush=True)
    signal.sigwait(_ENDS)
    server.stop(1.0).wait()
