"""Named points at which a test, the demo or `selftest` lets the process die as if power had failed.

`SERVICECTL_CRASH_AT` holds comma-separated names. The engine passes `<kind>/<step>/before`,
`<kind>/<step>/effect` (the effect happened, nothing recorded) and `<kind>/<step>/recorded` for every step.
"""

from __future__ import annotations

import os
import signal


def point(name: str) -> None:
    """Given the name of this point, die by SIGKILL if the environment asks for it."""
    wanted = os.environ.get("SERVICECTL_CRASH_AT")
    if wanted and name in wanted.split(","):
        os.kill(os.getpid(), signal.SIGKILL)
