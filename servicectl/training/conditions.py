"""The form of a slice's condition: one feature, one comparison, one value."""

from __future__ import annotations

import re

CONDITION = re.compile(r"\s*(?P<feature>.+?)\s*(?P<operator>==|!=|<=|>=|<|>)\s*(?P<value>.+?)\s*")


def slice_feature(condition: str) -> str | None:
    """The feature that a condition like "age >= 60" is about."""
    found = CONDITION.fullmatch(condition)
    return found["feature"] if found else None
