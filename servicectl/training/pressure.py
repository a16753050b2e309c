"""Serving first: training waits at a block's boundary while the kernel says that others wait for the processor.

`/proc/pressure/cpu` (Linux PSI): `some avg10` is the share of the last 10 seconds in which some task wanted a
processor and had none, in percent. Training itself contributes to it, so it is niced to the lowest priority besides,
and it never waits for longer than a minute at a stretch: a machine that is always busy still trains, slowly.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")
BUSY_PERCENT = 20.0
_LOOK_S = 1.0
_PAUSE_S = 1.0
_LONGEST_S = 60.0
_NICEST = 19


def pressure(path: Path = PRESSURE) -> float | None:
    """`some avg10` in percent; None where the kernel does not say."""
    try:
        line = path.read_text().partition("\n")[0]
        return float(dict(pair.split("=") for pair in line.split()[1:])["avg10"])
    except (OSError, ValueError, KeyError):
        return None


class Patience:
    """Call `wait` between blocks. Does nothing unless `serving_first`."""

    def __init__(
        self,
        serving_first: bool,
        measured: Callable[[], float | None] = pressure,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._on = serving_first
        self._measured = measured
        self._clock = clock
        self._sleep = sleep
        self._looked = -_LOOK_S
        self.paused_s = 0.0
        if serving_first:
            os.nice(_NICEST - os.nice(0))

    def wait(self) -> None:
        """Return when the machine is quiet, or after the longest pause."""
        if not self._on or self._clock() - self._looked < _LOOK_S:
            return
        started = self._clock()
        while (busy := self._measured()) is not None and busy > BUSY_PERCENT:
            if self._clock() - started >= _LONGEST_S:
                break
            self._sleep(_PAUSE_S)
            self.paused_s += _PAUSE_S
        self._looked = self._clock()
