"""Has the production model lost its score where labels have arrived? The judgement of a measurement that others made.

`training.decay` compares; here it is weighed: a loss counts if chance would hardly bring it (its bound, at the budgeted
error) and if it is large (a part of the score at publish), as for any other drift.
"""

from __future__ import annotations

from dataclasses import dataclass

from servicectl.drift.values import Judged, Verdict

_WARNING_PART = 0.5  # of the floor


@dataclass(frozen=True, slots=True)
class Lost:
    """`before` and `now`: the main metric on the rows of the publish and on the newest labelled ones. `difference`:
    now against before, negative where the model has become worse, whichever way the metric points; `high`: its upper
    bound. `rows`: labelled rows that are new."""

    metric: str
    before: float
    now: float
    difference: float
    high: float
    blocks: int
    rows: int


def judge(lost: Lost, floor: float) -> Judged:
    """Given a measurement and the part of its score whose loss is worth a retrain."""
    worth = floor * abs(lost.before)
    strength = max(-lost.difference, 0.0) / (_WARNING_PART * worth) if worth else float(lost.difference < 0)
    figures = (
        f"{lost.metric} {lost.now:.4f} on the {lost.rows:,} newest labelled rows, {lost.before:.4f} when it was published"
        f" (differs by {lost.difference:+.4f}, at most {lost.high:+.4f}, over {lost.blocks} time blocks)"
    )
    if lost.high >= 0:
        return Judged(Verdict.PASS, figures, own=True)  # it may be chance
    if -lost.difference < _WARNING_PART * worth:
        return Judged(Verdict.PASS, figures, strength, own=True)
    if -lost.difference < worth:
        why = f"{figures}; the loss is {-lost.difference / worth:.0%} of what is worth a retrain"
        return Judged(Verdict.WARNING, why, strength, own=True)
    return Judged(Verdict.CRITICAL, figures, strength, own=True)
