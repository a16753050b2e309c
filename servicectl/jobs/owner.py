"""Who runs a job: recorded with every claim, and the proof that a recorded process is still the same one.

Whether an owner is alive is never decided here (the scope's lock says it); only what may be sent to it is.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servicectl import store

_START_TIME = 22 - 3  # proc(5): field 22 of stat, in ticks since boot; what follows the name begins with field 3


def this_process() -> dict[str, Any]:
    """Host, boot id, pid, start time (ticks since boot), user, and who started it."""
    return {**store.owner(), "started": _started("self"), "trigger": trigger()}


def trigger() -> str:
    """Who started this process: told by our units and crontab, else guessed from systemd's own mark."""
    if told := os.environ.get("SERVICECTL_TRIGGER"):
        return told
    return "timer" if os.environ.get("INVOCATION_ID") and not sys.stdin.isatty() else "operator"


def described(owner: Mapping[str, Any]) -> str:
    """One line for eyes; what an older release did not record is left out."""
    told = f"{owner.get('user', '?')} on {owner.get('host', '?')}, pid {owner.get('pid', '?')}"
    boot = f", boot {str(owner['boot_id'])[:8]}" if owner.get("boot_id") else ""
    by = f", by {owner['trigger']}" if owner.get("trigger") else ""
    return f"{told}{boot}{by}"


def send(owner: Mapping[str, Any], number: signal.Signals) -> str | None:
    """Signal the process that made a claim; None when it was sent, else why it was not.

    A pid alone is never enough: it is handed out again. Host, boot and start time must be the recorded ones, and the
    signal goes through a descriptor that was open before they were compared (pidfd_open(2)), so that it reaches that
    process or nobody.
    """
    us = store.owner()
    pid, started = owner.get("pid"), owner.get("started")
    if owner.get("host") != us["host"]:
        return f"it runs on {owner.get('host')}"
    if owner.get("boot_id") != us["boot_id"]:
        return "its process ended when this machine was last started"
    if not isinstance(pid, int) or not isinstance(started, int):
        return f"process {pid} cannot be proven to be its owner: the start time was not recorded"
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return f"process {pid} is gone"
    except (OSError, OverflowError) as error:
        return f"process {pid} cannot be reached: {error}"
    try:
        if _started(str(pid)) != started:
            return f"process {pid} is another one by now"
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return f"process {pid} is gone"
    except PermissionError:
        return f"process {pid} belongs to {owner.get('user')}"
    finally:
        os.close(handle)
    return None


def _started(pid: str) -> int | None:
    """When a process was started, None where that cannot be known."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_START_TIME])
    except OSError:
        return None
