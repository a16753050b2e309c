"""The evidence behind a drift check, for somebody who asks: what the builtin statistics see in the same features."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from servicectl.actions.world import World


def evidence(world: World, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Given a drift-check's result, the evidence of every decision that is not a PASS, as in docs/json.md.

    What the check itself measured is told as it was. Where Service C alone was asked, the windows of the others are
    looked at now.
    """
    told = list(result.get("evidence", ()))
    known = {(one["model_id"], one["evidence"]["feature"]) for one in told}
    wanted = {(one["model_id"], one["feature"]) for one in result.get("decisions", ()) if one["verdict"] != "PASS"}
    wanted -= known
    if not any("status" in one and one["status"] for one in result.get("decisions", ())) or not wanted:
        return told  # Service C was not asked: there is nothing more to see
    rows = [
        replace(row, expected_features=tuple(f for f in row.expected_features if (row.model_id, f.name) in wanted))
        for row in world.registry.production()
    ]
    from servicectl.actions.drift_windows import measure

    with tempfile.TemporaryDirectory(prefix="servicectl-explain-") as folder:
        measured = measure(world, [row for row in rows if row.expected_features], Path(folder))
    return told + [
        {"model_id": row.model_id, "evidence": msgspec.to_builtins(one[1])}
        for row in rows
        for feature in row.expected_features
        if (one := measured.of(row.model_id, feature.name)) is not None
    ]
