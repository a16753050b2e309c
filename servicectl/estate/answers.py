"""What the DuckDB handler's answers mean: rows, a count, a refusal, or nothing that JSON can hold."""

from __future__ import annotations

import json
import re
from typing import Any

from servicectl.errors import BadAnswer

HANDLER = "the DuckDB handler"
READ_QUEUE = "duckdb_read_queue"

_CONFLICT = re.compile(r"Conflict on (update|tuple deletion)|write-write conflict", re.IGNORECASE)


class ConflictError(Exception):
    """The handler undid the statement because another one changed the same rows at that moment."""


def rows(answer: bytes) -> list[dict[str, Any]]:
    """Given an answer, its rows; [] for none and for a definition. Raises ConflictError, and BadAnswer for the rest."""
    if not answer:
        raise BadAnswer(
            f"{HANDLER} answered with an empty text: a value of the result is NaN, infinite, or a date beyond 9999",
            cure="find and correct that row; `WHERE NOT isfinite(column)` shows it",
        )
    try:
        told = json.loads(answer)
    except ValueError:
        raise BadAnswer(f"{HANDLER} answered something that is not JSON: {answer[:80]!r}") from None
    if not isinstance(told, dict):
        raise BadAnswer(f"{HANDLER} answered something that is not an object: {answer[:80]!r}")
    if told.get("error"):
        raise _refusal(one_line(str(told["error"])))
    data = told.get("data")
    if data is None:
        return []
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise BadAnswer(f"{HANDLER} answered something that is not a list of rows: {answer[:80]!r}")
    return data


def _refusal(text: str) -> Exception:
    if _CONFLICT.search(text):
        return ConflictError(text)
    if "Current transaction is aborted" in text:
        rollback = '{"query": "ROLLBACK", "response_key": "resp:operator"}'
        return BadAnswer(
            f"{HANDLER} refuses everything, because somebody left a broken transaction open in it: {text}",
            cure=f"somebody must send ROLLBACK: redis-cli RPUSH {READ_QUEUE} '{rollback}'",
        )
    return BadAnswer(f"{HANDLER} refused a statement: {text}")


def count(told: list[dict[str, Any]]) -> int:
    """Given the rows that a change was answered with, how many rows it changed."""
    match told:
        case [{"Count": int(counted)}]:
            return counted
    raise BadAnswer(f"{HANDLER} did not say how many rows it changed: {str(told)[:80]}")


def one_line(text: str) -> str:
    return " ".join(text.split())
