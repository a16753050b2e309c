"""A redis-server of its own on a free port, nothing persisted."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.parts import free_port, program


@dataclass
class RedisServer:
    url: str
    port: int
    process: subprocess.Popen[bytes]

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    port = free_port()
    server = RedisServer(f"redis://127.0.0.1:{port}/0", port, _process(port, folder))
    try:
        _wait(server)
        yield server
    finally:
        stop(server)


def stop(server: RedisServer) -> None:
    """Kill it; what it held is gone."""
    server.process.kill()
    server.process.wait()


def start_again(server: RedisServer, folder: Path) -> None:
    """Start a stopped one on its old port, empty."""
    server.process = _process(server.port, folder)
    _wait(server)


def _process(port: int, folder: Path) -> subprocess.Popen[bytes]:
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    return subprocess.Popen([program("redis-server"), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait(server: RedisServer) -> None:
    limit = time.monotonic() + 10
    with server.client() as client:
        while True:
            with suppress(redis.ConnectionError):
                client.ping()
                return
            if time.monotonic() > limit or server.process.poll() is not None:
                raise RuntimeError(f"redis-server did not start on port {server.port}")
            time.sleep(0.01)
