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
    binary = program("redis-server")
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = RedisServer(f"redis://127.0.0.1:{port}/0", port, process)
    try:
        _wait(server)
        yield server
    finally:
        process.kill()
        process.wait()


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
