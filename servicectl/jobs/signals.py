"""SIGTERM and SIGINT end a job at a safe place: at once between effects, after the block where one must finish."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupted(BaseException):
    """Like KeyboardInterrupt: no `except Exception` of a library may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


_deferrals = 0
_waiting: int | None = None


def _received(number: int, _frame: FrameType | None) -> None:
    global _waiting  # noqa: PLW0603 -- a signal handler has no other place to leave its mark
    if _deferrals or _waiting is not None:
        _waiting = number
        return
    _waiting = number
    raise Interrupted(number)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into Interrupted for a block; a no-op outside the main thread."""
    global _waiting, _deferrals  # noqa: PLW0603 -- see _received
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _waiting = None
    before = {number: signal.signal(number, _received) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        _deferrals = 0
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    global _deferrals  # noqa: PLW0603 -- see _received
    _deferrals += 1
    try:
        yield
    finally:
        _deferrals -= 1
    check()


def hold() -> None:
    """From here to the end of `watched`, signals are only noted: the job's end is being written."""
    global _deferrals  # noqa: PLW0603 -- see _received
    _deferrals += 1


def is_deferred() -> bool:
    return _deferrals > 0


def check() -> None:
    """Raise what arrived while it could not be acted on."""
    if _waiting is not None and not _deferrals:
        raise Interrupted(_waiting)
