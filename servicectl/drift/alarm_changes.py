"""What of a look is told to an operator: changes of state, and reminders of what stands. Pure, as `policy`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from servicectl.drift.policy import Decision, Verdict

AlarmKind = Literal["raised", "worse", "cleared", "not-measured", "measured-again", "reminder"]


@dataclass(frozen=True, slots=True)
class AlarmChange:
    """One thing to tell an operator, in one line of text."""

    model_id: str
    feature: str
    kind: AlarmKind
    verdict: Verdict
    text: str


def alarm_changes(
    previous: Mapping[tuple[str, str], Verdict],
    decisions: Iterable[Decision],
    *,
    unmeasured: frozenset[tuple[str, str]] = frozenset(),
) -> tuple[AlarmChange, ...]:
    """Given the verdict last told per (model, feature), NOT_MEASURED aside, and today's decisions, what is to be told.

    `unmeasured` are the pairs last told to be NOT_MEASURED. The two are apart because a look that
    measured nothing says nothing about drift: it neither raises nor clears an alarm, and the alarm that stands
    must still be cleared by the look after it. It is an alarm of its own kind, told once and ended by
    "measured-again".

    "raised": from calm to WARNING, CRITICAL or QUARANTINE, and between broken data and drift; "worse": from
    WARNING to CRITICAL or QUARANTINE; "cleared": back to PASS. CRITICAL to WARNING is not told: nothing is over.
    """
    changes: list[AlarmChange] = []
    for decision in decisions:
        pair = (decision.model_id, decision.feature)
        if decision.verdict is Verdict.NOT_MEASURED:
            if pair not in unmeasured:
                changes.append(_change("not-measured", decision))
            continue
        before = previous.get(pair, Verdict.PASS)
        if kind := _edge(Verdict.PASS if before is Verdict.NOT_MEASURED else before, decision.verdict):
            changes.append(_change(kind, decision))
        elif pair in unmeasured:
            changes.append(_change("measured-again", decision))
    return tuple(changes)


def reminders(
    changes: Iterable[AlarmChange], decisions: Iterable[Decision], due: frozenset[tuple[str, str]]
) -> tuple[AlarmChange, ...]:
    """Given what is told anyway, today's decisions and the pairs whose alarm was told too long ago, what is told again:
    drift and broken data that still stand."""
    told = {(change.model_id, change.feature) for change in changes}
    return tuple(
        _change("reminder", decision)
        for decision in decisions
        if decision.verdict in (Verdict.CRITICAL, Verdict.QUARANTINE)
        and (pair := (decision.model_id, decision.feature)) in due
        and pair not in told
    )


def endings(
    previous: Mapping[tuple[str, str], Verdict],
    unmeasured: frozenset[tuple[str, str]],
    decisions: Iterable[Decision],
    in_production: frozenset[str],
) -> tuple[AlarmChange, ...]:
    """Given what was told last, all of today's decisions and the models in production, the all-clears for what nobody
    asks about any more: a model that left production, or a feature that its model does not use now.

    What stands about a production model in parentheses is left alone: that is not always looked at.
    """
    asked = {(decision.model_id, decision.feature) for decision in decisions}
    standing = {pair for pair, verdict in previous.items() if verdict is not Verdict.PASS} | unmeasured
    changes = []
    for model_id, feature in sorted(standing - asked):
        if model_id not in in_production:
            why = f"{model_id} is not in production any more"
        elif feature.startswith("("):
            continue
        else:
            why = f"{model_id} does not use it any more"
        subject = f"{_named(feature)} of {model_id}" if feature else model_id
        changes.append(AlarmChange(model_id, feature, "cleared", Verdict.PASS, f"PASS (cleared): {subject}: {why}"))
    return tuple(changes)


def _edge(before: Verdict, after: Verdict) -> Literal["raised", "worse", "cleared"] | None:
    match before, after:
        case (a, b) if a is b:
            return None
        case (_, Verdict.PASS):
            return "cleared"
        case (Verdict.WARNING, Verdict.CRITICAL | Verdict.QUARANTINE):
            return "worse"
        case (Verdict.CRITICAL, Verdict.WARNING):
            return None
    return "raised"


def _change(kind: AlarmKind, decision: Decision) -> AlarmChange:
    subject = f"{_named(decision.feature)} of {decision.model_id}" if decision.feature else decision.model_id
    text = f"{decision.verdict} ({kind}): {subject} {decision.version}: {decision.reason}"
    return AlarmChange(decision.model_id, decision.feature, kind, decision.verdict, text)


def _named(feature: str) -> str:
    beside = feature.startswith("(") and feature.endswith(")")
    return feature[1:-1] if beside else f"feature {feature}"
