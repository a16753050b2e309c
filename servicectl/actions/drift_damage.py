"""Whether the rows behind a retrain that Service C's word asks for are damaged, which its figures do not tell from drift."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from servicectl import log
from servicectl.actions import drift_analysts
from servicectl.drift.comparison import Evidence
from servicectl.drift.judgement import judge_all
from servicectl.drift.values import Verdict
from servicectl.errors import ServicectlError, StoreError

if TYPE_CHECKING:
    from servicectl.actions.world import World
    from servicectl.estate.registry import ModelRow


@dataclass(frozen=True)
class Damage:
    """`broken` by (model, feature): what is wrong with its newest rows. `unverified`: why some or all rows could not be
    looked at, or ""."""

    broken: Mapping[tuple[str, str], str] = field(default_factory=dict)
    evidence: Mapping[tuple[str, str], Evidence] = field(default_factory=dict)
    unverified: str = ""


def look(world: World, rows: Sequence[ModelRow], models: Collection[str], folder: Path) -> Damage:
    """Given the production rows and the models that would be retrained, look at every feature that those learn from.

    All of them, not the drifted ones alone: a challenger learns the damage in any. What is not to be had is told in
    `unverified`, never raised.
    """
    wanted = {feature.name for row in rows if row.model_id in models for feature in row.expected_features}
    asked = [
        replace(row, expected_features=tuple(one for one in row.expected_features if one.name in wanted))
        for row in rows
    ]
    from servicectl.actions.drift_windows import measure

    try:
        found = measure(world, [row for row in asked if row.expected_features], folder)
    except StoreError:
        raise
    except ServicectlError as error:
        log.warning(f"{error.message}; whether the drifted rows are damaged was not looked at, Service C's word stands")
        return Damage(unverified=error.message)
    evidence, broken, keys = {}, {}, {}
    for row in asked:
        for feature in row.expected_features:
            pair = (row.model_id, feature.name)
            if pair not in found.failed and (one := found.of(*pair)) is not None:
                keys[pair], evidence[pair] = one
    judged = judge_all({key: evidence[pair] for pair, key in keys.items()}, drift_analysts.rules(world), found.place)
    for pair, key in keys.items():
        told = judged[key].judged
        if told is not None and told.verdict is Verdict.QUARANTINE:
            broken[pair] = told.reason
    failed = [f"{feature} of {model_id}: {why}" for (model_id, feature), why in found.failed.items()]
    return Damage(broken, evidence, "; ".join(failed))
