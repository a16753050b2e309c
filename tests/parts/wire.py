"""The bare wire to Redis: what is sent, seen by Redis itself, and a line on which Redis stalls at a chosen moment."""

from __future__ import annotations

import ast
import json
import os
import re
import selectors
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from servicectl.estate.queue import READ_QUEUE
from tests.parts import free_port
from tests.parts.redis import RedisServer

_STALL_CHECK_S = 0.05


@dataclass
class Seen:
    """Commands as Redis got them, in order, each as its words; binary content is decoded as well as it goes."""

    commands: list[tuple[str, ...]] = field(default_factory=list)

    def statements(self) -> list[str]:
        """The SQL of every request put on the handler's read queue."""
        return [asked["query"] for asked in self._requests()]

    def response_keys(self) -> list[str]:
        return [asked["response_key"] for asked in self._requests()]

    def _requests(self) -> list[dict[str, str]]:
        return [json.loads(words[2]) for words in self.commands if words[:2] == ("RPUSH", READ_QUEUE)]


@contextmanager
def watched(server: RedisServer) -> Iterator[Seen]:
    """What every client sends while the block runs; complete when it is left."""
    seen = Seen()
    end = uuid.uuid4().hex
    # Not by redis-py's monitor(), which takes a text with quotes and backslashes apart wrongly.
    with socket.create_connection(("127.0.0.1", server.port)) as listener, listener.makefile("rb") as lines:
        listener.sendall(b"MONITOR\r\n")
        assert lines.readline() == b"+OK\r\n"

        def listen() -> None:
            for line in lines:
                words = tuple(ast.literal_eval(f'b"{word}"').decode(errors="replace") for word in _words(line))
                if end in words:
                    return
                seen.commands.append(words)

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield seen
        finally:
            with server.client() as client:
                client.echo(end)
            thread.join()


def _words(line: bytes) -> list[str]:
    return re.findall(r'"((?:[^"\\]|\\.)*)"', line.decode("ascii").partition("] ")[2])


@contextmanager
def stalling(server: RedisServer, on: bytes, seconds: float) -> Iterator[str]:
    """A line to Redis, by its URL: when these bytes first pass, Redis is stopped (SIGSTOP) for so long, then gets them."""
    stop = threading.Event()
    stalled = threading.Event()
    threads: list[threading.Thread] = []

    def stall() -> None:
        os.kill(server.process.pid, signal.SIGSTOP)
        stop.wait(seconds)
        os.kill(server.process.pid, signal.SIGCONT)

    def carry(near: socket.socket, far: socket.socket) -> None:
        with near, far, selectors.DefaultSelector() as ready:
            ready.register(near, selectors.EVENT_READ, far)
            ready.register(far, selectors.EVENT_READ, near)
            while not stop.is_set():
                for key, _ in ready.select(_STALL_CHECK_S):
                    source: Any = key.fileobj
                    with suppress(OSError):
                        content = source.recv(65536)
                        if content and source is near and on in content and not stalled.is_set():
                            stalled.set()
                            start(stall)
                        if content:
                            key.data.sendall(content)
                            continue
                    return

    def start(work: Any, *given: object) -> None:
        threads.append(threading.Thread(target=work, args=given))
        threads[-1].start()

    def accept(listener: socket.socket) -> None:
        listener.settimeout(_STALL_CHECK_S)
        while not stop.is_set():
            with suppress(TimeoutError):
                start(carry, listener.accept()[0], socket.create_connection(("127.0.0.1", server.port)))

    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as listener:
        start(accept, listener)
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            stop.set()
            while threads:
                threads.pop().join()
