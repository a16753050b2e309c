"""Files that a step's stored value names: objects with `path`, `sha256` and `bytes`, anywhere in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from servicectl.files import sha256_of

Product = dict[str, Any]


def products(value: Any) -> list[Product]:
    """All of them, in order."""
    found: list[Product] = []

    def collect(product: Product) -> Product:
        found.append(product)
        return product

    mapped(value, collect)
    return found


def mapped(value: Any, change: Callable[[Product], Product]) -> Any:
    """The value with every product changed."""
    if isinstance(value, dict):
        members = {key: mapped(member, change) for key, member in value.items()}
        return change(members) if _is_product(members) else members
    if isinstance(value, list):
        return [mapped(member, change) for member in value]
    return value


def is_intact(product: Product) -> bool:
    """Whether the file is there, of this size and digest."""
    path = Path(product["path"])
    return path.is_file() and path.stat().st_size == product["bytes"] and sha256_of(path) == product["sha256"]


def _is_product(members: dict[str, Any]) -> bool:
    return {"path", "sha256", "bytes"} <= members.keys() and isinstance(members["path"], str)
