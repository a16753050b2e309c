"""What the gRPC workers of the miniature share: arguments, a loopback server, `ready` on stdout, the end at SIGTERM."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

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


def serve(port: int, register: Callable[[grpc.Server], None]) -> None:
    """Serve on 127.0.0.1 until SIGTERM or SIGINT, let calls in hand finish for a second, and end the process."""
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=[("grpc.so_reuseport", 0)])
    register(server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    # A pipe and not sigwait(): numpy's threads exist before any mask could be set, and would take the signal.
    reader, writer = os.pipe()
    for end in (signal.SIGTERM, signal.SIGINT):
        signal.signal(end, lambda *_: os.write(writer, b"."))
    print("ready", flush=True)
    os.read(reader, 1)
    server.stop(1.0).wait()
    os._exit(0)  # a call that waits for a silent handler would keep the interpreter alive for minutes
