"""How much memory there is for this process: the machine's, or less where a control group says so.

A unit's MemoryMax, a container's limit and any of their parents bind alike, so every group from the process's own up
to the root is asked: memory.max and memory.high of cgroup v2, memory.limit_in_bytes of v1, mounted where systemd and
container runtimes mount them. In a container without a cgroup namespace the told path does not exist below the mount;
then the mount's own root is the container's group, which the way up ends at too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_MEMBERSHIP = Path("/proc/self/cgroup")
_MOUNTED = Path("/sys/fs/cgroup")
_V2 = ("memory.max", "memory.high")  # above the second one the kernel takes memory back by slowing the process down
_V1 = ("memory.limit_in_bytes",)


def memory_bytes(membership: Path = _MEMBERSHIP, mounted: Path = _MOUNTED) -> int:
    """The least of the machine's memory and every limit that binds this process, in bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *_limits(membership, mounted)])


def _limits(membership: Path, mounted: Path) -> Iterator[int]:
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # another system
        return
    for line in lines:
        # hierarchy:controllers:path (cgroups(7)); 0 and no controllers: v2
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            for root in (mounted, mounted / "unified"):
                yield from _upwards(root, path, _V2)
        elif "memory" in controllers.split(","):
            for root in (mounted / "memory", mounted / controllers):
                yield from _upwards(root, path, _V1)


def _upwards(root: Path, path: str, names: tuple[str, ...]) -> Iterator[int]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        for name in names:
            # "max" is no number; a group without the controller has no such file
            with contextlib.suppress(OSError, ValueError):
                yield int(root.joinpath(*parts[:depth], name).read_text())
