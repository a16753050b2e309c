"""The story on stderr: one line per event, with journald's priority prefix when the journal listens."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from enum import IntEnum


class Level(IntEnum):
    """syslog priorities, as journald reads them from a `<n>` prefix."""

    ALERT = 1
    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7


_verbosity = Level.NOTICE
_progress: Callable[[str], None] | None = None


def set_verbosity(level: Level) -> None:
    global _verbosity  # noqa: PLW0603 -- one process, one terminal: the -q/-v switch is process-wide by nature
    _verbosity = level


def verbosity() -> Level:
    return _verbosity


def on_progress(show: Callable[[str], None] | None) -> None:
    """Where `working` goes while somebody watches; None: nowhere but debug."""
    global _progress  # noqa: PLW0603 -- as the verbosity
    _progress = show


def working(text: str) -> None:
    """What is being done right now; shown in place on a terminal, a debug line elsewhere."""
    if _progress is not None:
        _progress(text)
    debug(text)


def event(level: Level, text: str) -> None:
    """Write one line. Line breaks in `text` become spaces, so that one event stays one line."""
    if level > _verbosity:
        return
    prefix = f"<{int(level)}>" if os.environ.get("JOURNAL_STREAM") else ""
    # A log that is full or was closed must not end the work that it tells of.
    with contextlib.suppress(OSError):
        print(prefix + " ".join(text.splitlines()), file=sys.stderr, flush=True)


def alert(text: str) -> None:
    event(Level.ALERT, text)


def error(text: str) -> None:
    event(Level.ERROR, text)


def warning(text: str) -> None:
    event(Level.WARNING, text)


def notice(text: str) -> None:
    event(Level.NOTICE, text)


def info(text: str) -> None:
    event(Level.INFO, text)


def debug(text: str) -> None:
    event(Level.DEBUG, text)
