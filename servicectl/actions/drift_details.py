"""What is stored of each decision beside its verdict, small enough to keep for years: enough to plot them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from servicectl.actions.drift_decay import Decayed
from servicectl.drift.comparison import Evidence
from servicectl.drift.judgement import Rules, effect
from servicectl.drift.trigger import DECAY
from servicectl.drift.values import Decision


def detail(
    decision: Decision,
    source: str,
    evidence: Mapping[tuple[str, str], Evidence],
    decayed: Mapping[str, Decayed],
    rules: Rules,
) -> dict[str, Any]:
    """Given a decision and what it rests on, plain JSON. `source` is `analytics.source`."""
    if decision.feature == DECAY:
        shown = decayed[decision.model_id].shown if decision.model_id in decayed else None
        return {"analyst": "decay", "decay": msgspec.to_builtins(shown.decay)} if shown else {"analyst": "decay"}
    one = evidence.get((decision.model_id, decision.feature))
    told: dict[str, Any] = {"analyst": "service-c" if source == "service-c" else "builtin"}
    if one is None:
        return told
    return told | {
        "kind": one.kind,
        "effect": effect(one.ks, one.share_change, rules),
        "estate_psi": one.estate_psi,
        "share_change": one.share_change,
        "wasserstein": one.wasserstein,
        "out_of_range": one.out_of_range,
        "new_values": one.new_values,
        "reference": _window(one.reference_rows, one.reference_absent, one.reference_first, one.reference_last),
        "current": _window(one.current_rows, one.current_absent, one.current_first, one.current_last),
    }


def _window(rows: int, absent: int, first: datetime | None, last: datetime | None) -> dict[str, Any]:
    return {
        "rows": rows,
        "null_share": absent / rows if rows else None,
        "first": first.isoformat() if first else None,
        "last": last.isoformat() if last else None,
    }
