"""Pickles whose bytes depend on values alone.

The stock pickler writes a string once per object, so equal strings that happen to be one object in this process and
two in another (read from a checkpoint, interned by an attribute's assignment) give other bytes for an equal model.
"""

from __future__ import annotations

import io
import pickle
from typing import Any


class _ByValue(pickle._Pickler):  # noqa: SLF001 -- the pure Python one: the fast one has no place to look at strings
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self._strings: dict[str, str] = {}

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if type(obj) is str:
            obj = self._strings.setdefault(obj, obj)
        super().save(obj, save_persistent_id)  # type: ignore[misc] # typeshed leaves it out


def dumps(value: Any) -> bytes:
    """A plain pickle: equal values of equal structure give equal bytes in any process."""
    buffer = io.BytesIO()
    _ByValue(buffer).dump(value)
    return buffer.getvalue()
