"""Faults of the strict handler, switched on by name: in Redis while it runs, or by `--fault` when it starts.

The hash `miniature:faults` holds one field per fault, whose value is a JSON object; every member may be left out:
`times` (so often, then no more), `matching` (a regular expression that the statement must hold) and `seconds`.

frozen      nothing goes on until the fault is lifted; what was taken is executed then
dead        killed (SIGKILL) before it takes the next request or batch
killed      killed (SIGKILL) between taking a request or a batch and executing it
slow        waits `seconds` before it executes
conflict    an UPDATE is refused as if somebody had changed the same rows
empty       executes, and answers with an empty text
unanswered  executes, and does not answer
huge        as unanswered: what becomes of an answer of 700 MB
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import redis

KEY = "miniature:faults"
NAMES = ("frozen", "dead", "killed", "slow", "conflict", "empty", "unanswered", "huge")


class Faults:
    """The faults that are on, read from Redis whenever one might strike."""

    def __init__(self, client: redis.Redis, at_start: Mapping[str, str]) -> None:
        if unknown := sorted(set(at_start) - set(NAMES)):
            raise ValueError(f"unknown fault {', '.join(unknown)}; known are {', '.join(NAMES)}")
        self._redis: Any = client
        self._counting = threading.Lock()
        for name, members in at_start.items():
            self._redis.hset(KEY, name, members)

    def strikes(self, name: str, statement: str = "") -> Mapping[str, Any] | None:
        """The fault's members if it is on and meant for this statement; that counts as one of its `times`."""
        with self._counting:
            text = self._redis.hget(KEY, name)
            if text is None:
                return None
            fault: dict[str, Any] = json.loads(text)
            if not re.search(fault.get("matching", ""), statement, re.IGNORECASE):
                return None
            if "times" in fault:
                self._count(name, fault)
            return fault

    def _count(self, name: str, fault: dict[str, Any]) -> None:
        fault["times"] -= 1
        if fault["times"] <= 0:
            self._redis.hdel(KEY, name)
        else:
            self._redis.hset(KEY, name, json.dumps(fault))
