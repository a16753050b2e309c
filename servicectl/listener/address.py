"""Where the listener may be reached, and by whom."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

import grpc

from servicectl.errors import Busy, ConfigError

_SOCKET_MODE = 0o660
_FOLDER_MODE = 0o750
_OTHERS = 0o007
_SOCKET_PATH_LIMIT = 107  # sun_path of unix(7), without its final NUL


@dataclass(frozen=True)
class Address:
    """`bindable` is gRPC's form. `remote`: other machines may reach it. `path`: of a UNIX socket."""

    bindable: str
    remote: bool
    path: Path | None = None


def parsed(address: str) -> Address:
    """Given HOST:PORT, [IPv6]:PORT or unix:PATH, what it means. Raises ConfigError."""
    path = re.fullmatch(r"unix:(?://(?=/))?(.+)", address)
    if path:
        absolute = Path(path[1]).absolute()
        return Address(f"unix:{absolute}", remote=False, path=absolute)
    parts = re.fullmatch(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]/\s]+)):(?P<port>\d{1,5})", address)
    if not parts or int(parts["port"]) > 65535:
        raise ConfigError(
            f"listen.address {address!r} is not an address",
            cure="write it as 127.0.0.1:50054 or unix:/run/servicectl/listen.sock",
        )
    # Not looked up: what `localhost` means must not depend on a resolver.
    host = "127.0.0.1" if parts["host"] == "localhost" else parts["six"] or parts["host"]
    bindable = f"[{host}]:{parts['port']}" if parts["six"] else f"{host}:{parts['port']}"
    return Address(bindable, remote=not _is_loopback(host))


def bind(server: grpc.aio.Server, address: Address, credentials: grpc.ServerCredentials | None) -> str:
    """Bind a server, on a UNIX socket always without TLS; the address with its real port.

    Raises Busy if another process has it, ConfigError if it cannot be had.
    """
    if address.path is not None:
        return _bind_socket(server, address.bindable, address.path)
    try:
        if credentials is None:
            port = server.add_insecure_port(address.bindable)
        else:
            port = server.add_secure_port(address.bindable, credentials)
    except RuntimeError as error:
        raise _in_use(address.bindable) from error
    return f"{address.bindable.rpartition(':')[0]}:{port}"


def _bind_socket(server: grpc.aio.Server, bindable: str, path: Path) -> str:
    if len(os.fsencode(path)) > _SOCKET_PATH_LIMIT:
        raise ConfigError(f"{bindable} is too long for a socket", cure=f"at most {_SOCKET_PATH_LIMIT} bytes")
    _prepare(path.parent)
    if _answers(path):
        raise _in_use(bindable)  # gRPC would unlink a living listener's socket and take its place
    before = os.umask(0o777 & ~_SOCKET_MODE)
    try:
        server.add_insecure_port(bindable)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {bindable}: {error}", cure="check the folder's permissions") from error
    finally:
        os.umask(before)
    return bindable


def _prepare(folder: Path) -> None:
    """Whoever may enter the socket's folder may call: only the owner and its group."""
    try:
        if folder.parent.is_dir() and not folder.exists():
            folder.mkdir(_FOLDER_MODE)
        mode = stat.S_IMODE(folder.stat().st_mode)
    except OSError as error:
        raise ConfigError(
            f"the folder {folder} of the socket cannot be used: {error.strerror}", cure=f"mkdir -m 750 {folder}"
        ) from None
    if mode & _OTHERS:
        raise ConfigError(
            f"everybody on this machine may enter {folder}, where the socket would be (mode {mode:04o})",
            cure=f"chmod 750 {folder}, or use a folder of its own such as /run/servicectl",
        )


def _in_use(bindable: str) -> Busy:
    return Busy(
        f"cannot listen on {bindable}: another process has it, or it is no address of this machine",
        cure="end it, or choose another listen.address",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
