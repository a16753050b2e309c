"""The estate in small, in one folder: Redis, the DuckDB handler, Service C's and Service B's workers as processes."""

from __future__ import annotations

import importlib.util
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from servicectl.errors import ConfigError, ServicectlError

_READY_S = 60.0
_STOP_S = 10.0

RedisKind = Literal["auto", "server", "python"]


@dataclass
class Part:
    """One process of the estate; its output goes to `<folder>/log/<name>.log`."""

    name: str
    process: subprocess.Popen[bytes]


@dataclass
class MiniatureEstate:
    """Started on enter, stopped on exit; what it wrote stays in `folder`."""

    folder: Path
    redis: RedisKind = "auto"
    batch_seconds: float = 4.0
    redis_told: str = field(init=False, default="")
    redis_url: str = field(init=False, default="")
    analytics_address: str = field(init=False, default="")
    serving_address: str = field(init=False, default="")
    parts: dict[str, Part] = field(init=False, default_factory=dict)
    _running: ExitStack = field(init=False, default_factory=ExitStack)

    @property
    def database(self) -> Path:
        return self.folder / "feature_store.duckdb"

    @property
    def snapshots(self) -> Path:
        return self.folder / "snapshots"

    def __enter__(self) -> Self:
        for name in ("log", "snapshots"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        try:
            self._start_redis()
            self._start("handler", "--redis", self.redis_url, "--database", str(self.database), *self._batches())
            port_c, port_b = _free_port(), _free_port()
            self._start("analytics", "--redis", self.redis_url, "--port", str(port_c))
            self._start("serving", "--redis", self.redis_url, "--port", str(port_b))
            self.analytics_address, self.serving_address = f"127.0.0.1:{port_c}", f"127.0.0.1:{port_b}"
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def config_text(self, extra: str = "", analytics_source: str = "service-c") -> str:
        """A servicectl.toml for this estate; `extra` is appended (models, overrides of other sections)."""
        return f"""# Written for the miniature estate in this folder.
[state]
folder = {_toml(self.folder / "state")}

[redis]
url = {_toml(self.redis_url)}

[handler]
snapshot_folder = {_toml(self.snapshots)}

[analytics]
source = {_toml(analytics_source)}
address = {_toml(self.analytics_address)}

[serving]
address = {_toml(self.serving_address)}

[artifacts]
url = {_toml(f"file://{self.folder}/artifacts")}

[drift]
stale_after = "never" # its rows are a replay of the past: no newer ones than these will come

{extra}"""

    def _batches(self) -> tuple[str, str]:
        return "--batch-seconds", str(self.batch_seconds)

    def _start_redis(self) -> None:
        server = shutil.which("redis-server")
        kind = self.redis if self.redis != "auto" else "server" if server else "python"
        port = _free_port()
        self.redis_url = f"redis://127.0.0.1:{port}/0"
        if kind == "server":
            if server is None:
                raise ConfigError("there is no redis-server on PATH", cure="install it, or use --redis python")
            self.redis_told = f"redis-server ({server})"
            quiet = ("--save", "", "--bind", "127.0.0.1", "--dir", str(self.folder), "--loglevel", "warning")
            self._spawn("redis", [server, "--port", str(port), *quiet])
            _wait_for_port(port, self.parts["redis"].process)
            return
        if importlib.util.find_spec("fakeredis") is None:
            raise ConfigError(
                "there is neither a redis-server on PATH nor the pure-Python one",
                cure="install redis-server, or pip install 'servicectl[demo]'",
            )
        absent = "" if server else "; there is no redis-server on PATH"
        self.redis_told = f"fakeredis (pure Python, for this demo only{absent})"
        self._start("redis_server", "--port", str(port))

    def _start(self, module: str, *options: str) -> None:
        process = self._spawn(
            module, [sys.executable, "-m", f"servicectl.miniature.{module}", *options], ready_line=True
        )
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if selector.select(_READY_S) else b""
        if line.strip() != b"ready":
            log = (self.folder / "log" / f"{module}.log").read_text(errors="replace").strip().splitlines()
            raise ServicectlError(f"the miniature {module} did not start: {log[-1] if log else 'it said nothing'}")

    def _spawn(self, name: str, command: list[str], *, ready_line: bool = False) -> subprocess.Popen[bytes]:
        log = self._running.enter_context((self.folder / "log" / f"{name}.log").open("ab"))
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if ready_line else log,
            stderr=log,
            env=_environment(),
            start_new_session=True,  # Ctrl-C in the demo's terminal ends the demo, which then ends its estate in order
        )
        self.parts[name] = Part(name, process)
        self._running.callback(_stop, process)
        return process


def _toml(value: Path | str) -> str:
    """A TOML string; JSON's escapes are a part of TOML's."""
    return json.dumps(str(value), ensure_ascii=False)


def _environment() -> Mapping[str, str]:
    """Ours, less the switches that are meant for the commands alone, and with one thread per library."""
    kept = {name: value for name, value in os.environ.items() if name not in ("SERVICECTL_CRASH_AT", "JOURNAL_STREAM")}
    return {**kept, "OMP_NUM_THREADS": "1"}


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    import time

    limit = time.monotonic() + _READY_S
    while time.monotonic() < limit and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise ServicectlError(f"nothing listens on port {port}")
