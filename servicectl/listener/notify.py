"""Telling systemd how the listener is: the protocol of sd_notify(3), one datagram per message."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from servicectl import log


def tell(message: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send e.g. "READY=1" to the service manager, if there is one. A manager that is gone is no reason to end."""
    address = environment.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(message.encode(), address)
    except OSError as error:
        log.warning(f"systemd could not be told {message!r}: {error.strerror}")


def watchdog_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two signs of life: half of what systemd allows. None when it does not ask for any."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    meant_for = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdigit() or int(microseconds) == 0 or meant_for != str(os.getpid()):
        return None
    return int(microseconds) / 2e6
