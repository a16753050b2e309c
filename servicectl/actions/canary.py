"""Canaries: Service B answers known requests with our numbers, before the swap and after it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from servicectl.errors import PartyUnavailable
from servicectl.estate.serving import PredictionFailed
from servicectl.estate.serving_keys import candidate_name
from servicectl.training.spec import CanaryRow, ProductFile, verified

if TYPE_CHECKING:
    from servicectl.actions.world import World

_CANDIDATE_TTL_S = 900.0


class Tried(Struct, frozen=True):
    """`wrong`: Service B answered, and not with our numbers. `note` says what was seen."""

    wrong: bool
    note: str


_NOT_ASKED = Tried(False, "not asked (serving.canary = off)")
_WITHOUT_ROWS = Tried(False, "not asked: no canary rows are on record for this version")


def try_candidate(world: World, model_id: str, model: ProductFile, rows: ProductFile | None) -> Tried:
    """Before the swap: the model under a temporary key that Service B can load by name. Without rows nothing is asked."""
    if world.config.serving.canary == "off":
        return _NOT_ASKED
    if rows is None:
        return _WITHOUT_ROWS
    name = candidate_name(model_id, model.sha256)
    try:
        world.keys.put_candidate(name, verified(model, "model"), _CANDIDATE_TTL_S)
        return Tried(*_compared(world, name, _known(rows)))
    except PartyUnavailable as absent:
        return _without(world, absent)
    finally:
        world.keys.drop_candidate(name)


def watch_production(world: World, model_id: str, rows: ProductFile | None) -> Tried:
    """After the projection: wait until serving answers with the new model, at most the configured time."""
    if world.config.serving.canary == "off":
        return _NOT_ASKED
    if rows is None:
        return _WITHOUT_ROWS
    known = _known(rows)
    # Service B learns of the new model by an event, so its first answers may still be the old model's.
    patient = Retrying(
        stop=stop_after_delay(world.config.serving.timeout_s),
        wait=wait_fixed(0.1),
        retry=retry_if_result(lambda seen: seen[0]),
    )
    try:
        return Tried(*patient(_compared, world, model_id, known))
    except RetryError as late:
        return Tried(*late.last_attempt.result())
    except PartyUnavailable as absent:
        return _without(world, absent)


def _without(world: World, absent: PartyUnavailable) -> Tried:
    if world.config.serving.canary == "require" or absent.party == "Redis":
        raise absent
    return Tried(False, f"unacknowledged: {absent.message}")


def _known(rows: ProductFile) -> tuple[CanaryRow, ...]:
    return msgspec.json.decode(verified(rows, "canary rows"), type=tuple[CanaryRow, ...])


def _compared(world: World, name: str, rows: tuple[CanaryRow, ...]) -> tuple[bool, str]:
    for number, row in enumerate(rows, 1):
        try:
            answered = world.serving.predict(name, row.features)
        except PredictionFailed as failed:
            return True, f"Service B refused canary row {number}: {failed.message}"
        if not math.isclose(answered, row.prediction, rel_tol=1e-9, abs_tol=1e-12):
            return True, f"Service B answered {answered:g} to canary row {number}, expected {row.prediction:g}"
    return False, f"Service B answered {len(rows)} canary rows with our numbers{_apart(rows)}"


def _apart(rows: tuple[CanaryRow, ...]) -> str:
    """What these answers say about which model gave them."""
    if all(row.tells is None for row in rows):
        return ""
    telling = sum(bool(row.tells) for row in rows)
    if not telling:
        return "; they cannot tell it from the version that it was judged against"
    return f"; the version that it was judged against answers {telling} of them otherwise"
