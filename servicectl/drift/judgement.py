"""The builtin statistics' own judgement of one look: significance over all features, size of the effect, persistence.

A shift is CRITICAL if it is (1) no chance: its p-value, adjusted for the number of features looked at (Benjamini and
Hochberg), is at most `false_alarms`; (2) large: at least the floor, or the feature's calibrated cut-off, since with
enough rows every feature differs; and (3) there to stay: seen in enough of the current window's disjoint parts.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import numpy as np

from servicectl.drift.comparison import Evidence, Part
from servicectl.drift.policy import Judged, Measured, Verdict
from servicectl.drift.statistics import benjamini_hochberg

Key = TypeVar("Key", bound=Hashable)

_WARNING_PART = 0.5  # of the floor
_UNADJUSTED = 0.05


@dataclass(frozen=True, slots=True)
class Rules:
    """`min_rows`: values that each window must have. `false_alarms`: the chance of any CRITICAL in a look at which
    nothing has drifted. Floors: the Kolmogorov-Smirnov distance of a number, and the change of one category's share,
    that are worth a retrain; half of them is worth a WARNING. `parts_drifted` of the current window's parts must show
    the shift. `absent_floor`: the rise in the share of absent values that is worth a WARNING. `outside_floor`: the share
    of values of a number outside all that the reference holds that is worth one. `cut_offs`: calibrated
    least effects by feature, in multiples of the floor."""

    min_rows: int = 100
    false_alarms: float = 0.01
    effect_floor_ks: float = 0.1
    effect_floor_share: float = 0.07
    parts_drifted: int = 1
    absent_floor: float = 0.05
    outside_floor: float = 0.02
    cut_offs: Mapping[str, float] = field(default_factory=dict)


def judge(evidence: Sequence[Evidence], rules: Rules) -> dict[str, Measured]:
    """Given the evidence of one look, one per feature, what each feature's measurement is worth."""
    return judge_all({one.feature: one for one in evidence}, rules)


def judge_all(
    evidence: Mapping[Key, Evidence], rules: Rules, origin: Mapping[Key, str] | None = None
) -> dict[Key, Measured]:
    """As `judge`, where features are compared with several references; all of them are one look.

    `origin` says where rows come from: only features of one origin are expected to go on together.
    """
    of_origin: dict[str, dict[Key, Evidence]] = {}
    for key, one in evidence.items():
        of_origin.setdefault((origin or {}).get(key, ""), {})[key] = one
    behind = {key: why for group in of_origin.values() for key, why in _left_behind(group).items()}
    tested = {
        key: one.p_value
        for key, one in evidence.items()
        if one.p_value is not None and not one.broken and key not in behind and not _too_few(one, rules)
    }
    adjusted = benjamini_hochberg(np.array(list(tested.values()), dtype=np.float64))
    p_values = dict(zip(tested, adjusted.tolist(), strict=True))
    return {
        key: _measured(one, _judged(one, rules, behind.get(key, ""), p_values.get(key), len(tested)))
        for key, one in evidence.items()
    }


def effect(ks: float | None, share_change: float, rules: Rules) -> float:
    """The size of a shift in multiples of the floor: 1 is worth a retrain."""
    return max((ks or 0.0) / rules.effect_floor_ks, share_change / rules.effect_floor_share)


def _judged(one: Evidence, rules: Rules, behind: str, p_value: float | None, tests: int) -> Judged:
    if broken := one.broken or behind:
        return Judged(Verdict.QUARANTINE, broken)
    if p_value is None:
        return Judged(Verdict.NOT_MEASURED, _too_few(one, rules) or "its values could not be compared")
    size = effect(one.ks, one.share_change, rules)
    floor = max(1.0, rules.cut_offs.get(one.feature, 0.0))
    warning = _WARNING_PART * floor
    strength = size / warning if one.p_value is not None and one.p_value < _UNADJUSTED else 0.0
    figures = _figures(one, p_value, tests)
    if p_value > rules.false_alarms or size < warning:
        calm = Judged(Verdict.PASS, figures, strength)
        return _outside(one, rules, tests, _absent_values(one, rules, tests, calm))
    if size < floor:
        why = f"{figures}; the effect is {size / floor:.0%} of what is worth a retrain"
        return Judged(Verdict.WARNING, why, strength)
    seen = sum(_shows(part, rules, floor) for part in one.parts)
    if one.parts and seen < rules.parts_drifted:
        why = f"{figures}; seen in {seen} of {len(one.parts)} parts of the newest window, {rules.parts_drifted} are wanted"
        return Judged(Verdict.WARNING, why, strength)
    return Judged(Verdict.CRITICAL, figures, strength)


def _absent_values(one: Evidence, rules: Rules, tests: int, otherwise: Judged) -> Judged:
    if one.absent_change < rules.absent_floor or one.absent_p_value * tests > rules.false_alarms:
        return otherwise
    before, after = one.reference_absent / one.reference_rows, one.current_absent / one.current_rows
    why = f"{otherwise.reason}; {after:.1%} of the newest values are absent, {before:.1%} of the older ones were"
    return Judged(Verdict.WARNING, why, one.absent_change / rules.absent_floor)


def _outside(one: Evidence, rules: Rules, tests: int, otherwise: Judged) -> Judged:
    """Values where there never were any, such as -999 for "unknown": too few to move the distribution."""
    if one.kind != "number" or one.out_of_range < rules.outside_floor:
        return otherwise
    if one.out_of_range_p_value * tests > rules.false_alarms:
        return otherwise
    why = f"{otherwise.reason}; {one.out_of_range:.1%} of the newest values are outside the range of all older ones"
    return Judged(Verdict.WARNING, why, max(otherwise.strength, one.out_of_range / rules.outside_floor))


def _shows(part: Part, rules: Rules, floor: float) -> bool:
    return effect(part.ks, part.share_change, rules) >= floor


def _too_few(one: Evidence, rules: Rules) -> str:
    windows = {
        "older": one.reference_rows - one.reference_absent,
        "newest": one.current_rows - one.current_absent,
    }
    for name, values in windows.items():
        if values < rules.min_rows:
            return f"only {values:,} values in the {name} window (fewer than {rules.min_rows:,})"
    return ""


def _left_behind(evidence: Mapping[Key, Evidence]) -> dict[Key, str]:
    """Features that stopped while the others went on: their newest rows are old by more than half of their history."""
    newest = max((one.current_last for one in evidence.values() if one.current_last is not None), default=None)
    if newest is None:
        return {}
    return {key: why for key, one in evidence.items() if (why := _is_stale(one, newest))}


def _is_stale(one: Evidence, newest: datetime) -> str:
    if one.current_last is None or one.reference_first is None:
        return ""
    if newest - one.current_last <= one.current_last - one.reference_first:
        return ""
    return f"its newest row is from {one.current_last:%Y-%m-%d %H:%M}; other features have rows until {newest:%Y-%m-%d %H:%M}"


def _figures(one: Evidence, p_value: float, tests: int) -> str:
    by_share = one.kind == "category"
    distance = f"a share changed by {one.share_change:.1%}" if by_share else f"KS {one.ks:.3f}"
    among = f" among {tests} features" if tests > 1 else ""
    before, after = one.reference_rows - one.reference_absent, one.current_rows - one.current_absent
    return f"{distance} (p {p_value:.2g}{among}), PSI {one.psi:.3f}, {after:,} values against {before:,}"


def _measured(one: Evidence, judged: Judged) -> Measured:
    return Measured(psi=one.psi, ks_stat=one.ks, ks_p_value=one.p_value, kl_divergence=one.kl, status="", judged=judged)
