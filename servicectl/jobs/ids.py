"""The ids of jobs: sorted by time, or made of a parent's."""

from __future__ import annotations

import os
import uuid

from servicectl.clock import Clock


def new_job_id(clock: Clock) -> str:
    """A UUIDv7 (RFC 9562): 48 bits of milliseconds, then random bits, so that ids sort by time."""
    milliseconds = int(clock.now().timestamp() * 1000)
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & ((1 << 48) - 1)) << 80 | 0x7 << 76 | (random >> 68 & 0xFFF) << 64
    return str(uuid.UUID(int=value | 0b10 << 62 | random & ((1 << 62) - 1)))


def child_id(parent_id: str, kind: str, scope: str) -> str:
    """The same parent always has the same child for a scope, however often it is killed and resumed."""
    return str(uuid.uuid5(uuid.UUID(parent_id), f"{kind} {scope}"))
