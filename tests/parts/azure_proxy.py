"""A store that answers as Azure does in bad hours: a proxy before Azurite that refuses what a test tells it to."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass
class Refusal:
    """Answer requests that match with this status and error code, `times` times; negative: always."""

    status: int
    code: str
    times: int = -1
    matches: Callable[[str, str], bool] = lambda _method, _path: True
    headers: Mapping[str, str] = field(default_factory=dict)
    met: int = 0

    def takes(self, method: str, path: str) -> bool:
        if not self.matches(method, path) or self.times == 0:
            return False
        self.times -= 1
        self.met += 1
        return True


@dataclass(frozen=True)
class Asked:
    """One request as it came: seconds on a clock that only runs on."""

    at_s: float
    method: str
    path: str
    refused: bool


@dataclass
class Proxy:
    port: int
    refusals: list[Refusal]
    asked: list[Asked]


@contextmanager
def azure_proxy(port: int) -> Iterator[Proxy]:
    """A proxy to the Azurite at `port`; what stands in `refusals` is refused."""
    refusals: list[Refusal] = []
    asked: list[Asked] = []
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            came = time.monotonic()
            with turn:
                refusal = next((one for one in refusals if one.takes(self.command, self.path)), None)
                asked.append(Asked(came, self.command, self.path, refusal is not None))
            if refusal is not None:
                told = {"x-ms-error-code": refusal.code, **refusal.headers}
                self._answer(refusal.status, told, b"")
                return
            connection = http.client.HTTPConnection("127.0.0.1", port)
            try:
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
                kept = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
                length = answer.getheader("Content-Length") if self.command == "HEAD" else None
                self._answer(answer.status, kept, content, length)
            finally:
                connection.close()

        def _answer(self, status: int, headers: Mapping[str, str], content: bytes, length: str | None = None) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve  # noqa: N815 -- http.server's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield Proxy(server.server_address[1], refusals, asked)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
