"""SIGTERM and SIGINT end a job at a safe place: at once between effects, after the block where one must finish.

A signal is for the whole process, so one that has arrived stays: `arrived` keeps later jobs from being begun.
"""

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


class _State(threading.local):
    """Signals reach the main thread only; jobs in other threads each count their own deferrals."""

    deferrals = 0
    waiting: int | None = None


_state = _State()


def _received(number: int, _frame: FrameType | None) -> None:
    unwinding = _state.waiting is not None
    _state.waiting = number
    if not unwinding:
        check()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into Interrupted for a block; they are only noted until `release`.

    Outside the main thread, which alone may own signals, nothing ever arrives.
    """
    mine = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    _state.deferrals = 1
    before = {number: signal.signal(number, _received) for number in mine}
    try:
        yield
    finally:
        _state.deferrals = 0
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred(*, check_after: bool = True) -> Iterator[None]:
    _state.deferrals += 1
    try:
        yield
    finally:
        _state.deferrals -= 1
    if check_after:
        check()


def release() -> None:
    """From here on signals interrupt; raises what has arrived."""
    _state.deferrals -= 1
    check()


def hold() -> None:
    """From here to the end of `watched`, signals are only noted: the job's end is being written."""
    _state.deferrals += 1


def is_deferred() -> bool:
    return _state.deferrals > 0


def arrived() -> signal.Signals | None:
    """The signal this process was asked to end with, if any."""
    return None if _state.waiting is None else signal.Signals(_state.waiting)


def check() -> None:
    """Raise what arrived while it could not be acted on."""
    if _state.waiting is not None and not _state.deferrals:
        raise Interrupted(_state.waiting)
