"""The end of a command."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """End the process with a status, exit handlers run and output flushed, and let the kernel take the memory back.

    Python would free every object one by one, 25 ms of CPU after each command, while others wait for the processor
    (mypy's `util.hard_exit` does the same). Where a thread is still at work, or output cannot be flushed, the process
    ends Python's way, which waits for the one and tells the other.
    """
    working = [one for one in threading.enumerate() if one is not threading.current_thread() and not one.daemon]
    if working:
        sys.exit(status)
    atexit._run_exitfuncs()  # noqa: SLF001 -- what the interpreter would do itself; there is no public way
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream:  # None where the caller had closed it
                stream.flush()
    except (OSError, ValueError):
        sys.exit(status)
    os._exit(status)
