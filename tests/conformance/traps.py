"""The traps of the estate's wire, what answers each of them here, and where that stands in the code.

The report of `make conformance` and docs/conformance.md are made of this table; the tests hold all three together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., Any])

_QUEUE = "servicectl/estate/queue.py"
_ANSWERS = "servicectl/estate/answers.py"
_REGISTRY = "servicectl/estate/registry.py"
_ROWS = "servicectl/estate/registry_rows.py"
_VALUES = "servicectl/estate/values.py"
_SQL = "servicectl/sql.py"
_FEATURES = "servicectl/estate/features.py"
_SOURCE = "servicectl/training/source.py"
_KEYS = "servicectl/estate/serving_keys.py"
_METADATA = "servicectl/estate/serving_metadata.py"
_POLICY = "servicectl/drift/policy.py"
_CHECK = "servicectl/actions/drift_check.py"
_SERVABLE = "servicectl/training/servable.py"


@dataclass(frozen=True)
class Trap:
    """`guards` are `file:function`, the one that matters most first."""

    what: str
    guards: tuple[str, ...]


TRAPS = {
    1: Trap(
        "redis-py repeats a push whose answer is late: the statement runs twice",
        (f"{_QUEUE}:_client", f"{_QUEUE}:HandlerQueue._until_final"),
    ),
    2: Trap(
        "a time-out is not a failure: the statement may run minutes later",
        (
            f"{_QUEUE}:HandlerQueue._change_once",
            f"{_QUEUE}:HandlerQueue._withdraw",
            f"{_QUEUE}:HandlerQueue._until_final",
        ),
    ),
    3: Trap(
        "a NaN, an infinity or a far date anywhere makes the whole answer an empty text",
        (f"{_ANSWERS}:rows", f"{_ROWS}:COLUMNS", f"{_SOURCE}:_number_or_null"),
    ),
    4: Trap(
        "`data: null` is no rows, or a definition, or rows that could not be read",
        (f"{_ANSWERS}:count", "servicectl/actions/snapshot.py:take"),
    ),
    5: Trap(
        "decimals are objects, integral doubles integers, dates midnights, times of mixed length",
        (f"{_VALUES}:typed", f"{_ROWS}:COLUMNS"),
    ),
    6: Trap(
        "requests run in any order; others' changes conflict; insert-if-absent is no lock",
        (
            f"{_QUEUE}:HandlerQueue._through_conflicts",
            f"{_QUEUE}:HandlerQueue.exclusively",
            f"{_QUEUE}:HandlerQueue._wait",
            f"{_REGISTRY}:Registry._without_repeats",
        ),
    ),
    7: Trap(
        "BEGIN, SET, ATTACH and ALTER change the state of every service",
        (f"{_QUEUE}:_request", f"{_SQL}:leading_words", f"{_ANSWERS}:_refusal"),
    ),
    8: Trap(
        "a response key that exists gets lost; an answer over 512 MB never comes",
        (f"{_QUEUE}:_request", f"{_QUEUE}:HandlerQueue._forgotten", f"{_FEATURES}:FeatureStore.copy_to_parquet"),
    ),
    9: Trap(
        "names with quotes, comment marks or NUL become SQL; Service C cannot ask for a quoted feature",
        (f"{_SQL}:literal", f"{_SQL}:identifier", f"{_REGISTRY}:Registry.insert_staging"),
    ),
    10: Trap(
        "COPY TO writes on the handler's machine, relative to its folder, over what is there",
        (f"{_FEATURES}:FeatureStore.copy_to_parquet", "servicectl/actions/snapshot.py:take"),
    ),
    11: Trap(
        "the write queue loses rows with dates; defaults are local time; one NaN score blinds every reader",
        (
            f"{_REGISTRY}:Registry.insert_staging",
            f"{_QUEUE}:_writable",
            f"{_REGISTRY}:Registry.write_drift_scores",
        ),
    ),
    12: Trap(
        "a reader between two writes of a publish sees half of it",
        (f"{_KEYS}:ServingKeys._project", f"{_REGISTRY}:Registry.switch_production"),
    ),
    13: Trap(
        "one bad `model_metadata:<id>` stops Service C for every model",
        (f"{_METADATA}:metadata_for_readers", f"{_METADATA}:with_scores"),
    ),
    14: Trap(
        "a row that the write queue cannot store takes the later rows of that batch along",
        (f"{_QUEUE}:HandlerQueue.push_rows", f"{_QUEUE}:_writable"),
    ),
    15: Trap(
        'an empty or shorter answer of Service C looks like "no drift"',
        (f"{_POLICY}:decide", f"{_POLICY}:summary"),
    ),
    16: Trap(
        "Service C answers OK although Redis, the handler or the view `features` is missing",
        (f"{_CHECK}:_preflight", "servicectl/actions/doctor.py:examine"),
    ),
    17: Trap("on few rows Service C cries wolf", (f"{_POLICY}:_judge",)),
    18: Trap(
        "a call grows with models x features, and a late one keeps the server busy",
        ("servicectl/actions/drift_analysts.py:_service_c", "servicectl/estate/rpc.py:OPTIONS"),
    ),
    19: Trap(
        "uploaded rows carry the year 1 or no time at all",
        (f"{_FEATURES}:FeatureStore.feature_rows", f"{_SOURCE}:_long", f"{_POLICY}:_broken"),
    ),
    20: Trap(
        "Service B hands over columns in any order and numbers as text, and has no servicectl",
        (f"{_SERVABLE}:check", "servicectl/training/probe.py:_predictions"),
    ),
    21: Trap(
        "Service B's scikit-learn may read a model otherwise than ours",
        ("servicectl/actions/canary.py:try_candidate", "servicectl/training/fit.py:libraries"),
    ),
    22: Trap(
        "an error of Service B comes with gRPC status OK and the number -1.0",
        ("servicectl/estate/serving.py:ServingClient.predict",),
    ),
    23: Trap(
        "the handler cannot open a file that DuckDB 2.0 made",
        ("servicectl/miniature/handler.py:Handler._opened",),
    ),
}


def trap(number: int) -> Callable[[Test], Test]:
    """Mark a test as one that shows trap `number` to be answered."""
    assert number in TRAPS
    return pytest.mark.trap(number)
