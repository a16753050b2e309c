"""One look at every production model: what was asked and answered, what it means, and what should be retrained."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from servicectl.actions import drift_analysts, drift_damage, drift_decay
from servicectl.actions.drift_analysts import Answered, Beside
from servicectl.actions.drift_details import detail
from servicectl.actions.kinds import RETRAIN
from servicectl.actions.production import read_truth
from servicectl.actions.slots import TIMER
from servicectl.clock import stored
from servicectl.config import seconds
from servicectl.drift.agreement import Agreement
from servicectl.drift.alarm_changes import alarm_changes, endings, reminders
from servicectl.drift.comparison import Evidence
from servicectl.drift.policy import affected, decide, quarantined, summary
from servicectl.drift.trigger import DECAY, LABEL, PREDICTION, Pull, Trigger, pull
from servicectl.drift.values import Asked, Decision, FeatureRows, Judged, Measured, Verdict
from servicectl.estate.artifacts import names

if TYPE_CHECKING:
    from servicectl.actions.world import World
    from servicectl.estate.registry import ModelRow
    from servicectl.jobs.context import JobContext

_UNMEASURED = (Verdict.NOT_MEASURED, Verdict.QUARANTINE)
_KINDS = {"decay": DECAY, "label": LABEL, "prediction": PREDICTION}
Kinds = Mapping[str, frozenset[str]]
"""Model -> the kinds of evidence besides its features (DECAY, LABEL, PREDICTION)."""


@dataclass(frozen=True)
class Shown:
    """The evidence behind one decision that is not a PASS."""

    model_id: str
    evidence: Evidence


@dataclass(frozen=True)
class Look:
    """One look at every production model: what was decided, which models must retrain, and what to tell.

    `decisions` are of features and of what is beside them. `held`: models that drifted or decayed and whose trigger
    asks for more, or whose rows are damaged. `evidence` is of what is not a PASS, and was looked at: where Service C
    alone was asked, the features of models that would retrain; `unverified` says why that could not be done.
    `details` are stored beside the decisions, in their order.
    """

    decisions: tuple[Decision, ...]
    drifted: tuple[str, ...]
    unexpected: tuple[str, ...]
    retrain: Mapping[str, tuple[str, ...]]
    changes: tuple[tuple[str, str, str, str, str], ...]
    rows_without_time: int
    outcome: str
    not_measured: int
    evidence: tuple[Shown, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    held: Mapping[str, str] = field(default_factory=dict)
    decay: tuple[drift_decay.Shown, ...] = ()
    unverified: str = ""
    details: tuple[dict[str, Any], ...] = ()


def look(world: World, context: JobContext, rows: tuple[ModelRow, ...]) -> Look:
    """Given the production rows. Raises as the parties that are asked."""
    features_of = {row.model_id: tuple(feature.name for feature in row.expected_features) for row in rows}
    learnt = {row.model_id: _learnt_until(world, row) for row in rows}
    asked = [Asked(row.model_id, row.version, features_of[row.model_id], learnt[row.model_id]) for row in rows]
    wanted, relied = _wanted(world, rows)
    answered = drift_analysts.ask(world, rows, asked, context.folder, _beside(world, wanted))
    decayed = drift_decay.measure(world, [row for row in rows if DECAY in wanted[row.model_id]], context.folder)
    standing = world.alarms.standing()
    previous = {pair: Verdict(verdict) for pair, verdict in standing.verdicts.items()}
    settings = drift_analysts.settings(world)
    # What was interrupted and is resumed looks at the same rows: it is no look of its own.
    scheduled = context.job.trigger == TIMER and context.job.attempts <= 1
    findings = decide(
        asked,
        _answers(answered, besides=False),
        answered.rows,
        settings,
        now=world.clock.now(),
        previous=previous,
        own_rows=answered.own_rows,
        looks=_looks(world, asked) if settings.looks_drifted > 1 else {},
        counts_as_look=scheduled,
    )
    answers, counted = _besides(world, answered, decayed, wanted)
    beside = decide(
        _asked_besides(rows, wanted, learnt),
        answers,
        {},
        # Labels come late by their nature, and a model may go unasked for days.
        replace(settings, stale_after=None, watch_silence=False),
        now=world.clock.now(),
        previous=previous,
        own_rows=counted,
    ).decisions
    pulls = _pulls(world, affected(findings, features_of), findings.decisions, beside)
    damage = drift_damage.Damage()
    if world.config.analytics.source == "service-c" and (due := [name for name, one in pulls.items() if one.causes]):
        damage = drift_damage.look(world, rows, due, context.folder)
        findings = quarantined(findings, damage.broken)
        pulls = _pulls(world, affected(findings, features_of), findings.decisions, beside)
    evidence = {**answered.evidence, **damage.evidence}
    decisions = (*findings.decisions, *beside)
    # What no retrain depends on and nobody could measure is said, and nobody is woken for it.
    told = (*findings.decisions, *(one for one in beside if not _idle(one, relied)))
    changes = alarm_changes(previous, told, unmeasured=standing.unmeasured)
    changes += reminders(changes, told, _due_for_reminder(world))
    changes += endings(previous, standing.unmeasured, decisions, frozenset(features_of))
    found = summary(findings)
    not_measured = Counter(one.verdict in _UNMEASURED for one in told)[True]
    drift = found.outcome == "drift" or any(
        one.verdict is Verdict.CRITICAL and one.feature in relied[one.model_id] for one in beside
    )
    return Look(
        decisions=decisions,
        drifted=findings.drifted,
        unexpected=findings.unexpected,
        retrain={model_id: one.causes for model_id, one in pulls.items() if one.causes},
        changes=tuple((c.model_id, c.feature, c.kind, c.verdict.value, c.text) for c in changes),
        rows_without_time=_without_time(answered, asked),
        outcome="drift" if drift else "not-measured" if not_measured else "clear",
        not_measured=not_measured,
        evidence=_shown(decisions, evidence),
        agreements=answered.agreements,
        held={model_id: one.held for model_id, one in pulls.items() if one.held},
        decay=tuple(one.shown for one in decayed.values() if one.shown is not None),
        unverified=damage.unverified,
        details=_details(world, decisions, evidence, decayed),
    )


def trigger_of(world: World, model_id: str) -> Trigger:
    model = world.config.models.get(model_id)
    return (model.trigger if model is not None else None) or world.config.drift.trigger


def _wanted(world: World, rows: Sequence[ModelRow]) -> tuple[Kinds, Kinds]:
    """What to look at besides the features, and what of it the retrain depends on, so that silence is no calm."""
    drift, builtin = world.config.drift, world.config.analytics.source != "service-c"
    named = drift.beside if drift.beside is not None else tuple(_KINDS) if builtin else ()
    relied = {
        row.model_id: frozenset(
            [_KINDS[kind] for kind in drift.retrain_on if kind != "features"]
            + ([] if trigger_of(world, row.model_id) == "drift" else [DECAY])
        )
        for row in rows
    }
    also = frozenset(_KINDS[kind] for kind in named)
    return {row.model_id: also | relied[row.model_id] for row in rows}, relied


def _beside(world: World, wanted: Kinds) -> Beside:
    labels = {
        model_id: world.config.models[model_id].label
        for model_id, kinds in wanted.items()
        if LABEL in kinds and model_id in world.config.models
    }
    return Beside(labels, frozenset(model_id for model_id, kinds in wanted.items() if PREDICTION in kinds))


def _asked_besides(rows: Sequence[ModelRow], wanted: Kinds, learnt: Mapping[str, datetime | None]) -> list[Asked]:
    asked = []
    for row in rows:
        kinds = wanted[row.model_id]
        for kind in (LABEL, PREDICTION, DECAY):
            if kind in kinds:
                # What a model answers it never learnt from.
                until = None if kind == PREDICTION else learnt[row.model_id]
                asked.append(Asked(row.model_id, row.version, (kind,), until))
    return asked


def _answers(answered: Answered, *, besides: bool) -> dict[str, dict[str, Measured]]:
    return {
        model_id: {name: one for name, one in told.items() if (name in (LABEL, PREDICTION)) == besides}
        for model_id, told in answered.answers.items()
    }


def _besides(
    world: World, answered: Answered, decayed: Mapping[str, drift_decay.Decayed], wanted: Kinds
) -> tuple[dict[str, dict[str, Measured]], dict[tuple[str, str], FeatureRows]]:
    answers = _answers(answered, besides=True)
    counted = {pair: rows for pair, rows in answered.own_rows.items() if pair[1] in (LABEL, PREDICTION)}
    for model_id, one in decayed.items():
        answers.setdefault(model_id, {})[DECAY] = one.measured
        if one.rows is not None:
            counted[model_id, DECAY] = one.rows
    for model_id, kinds in wanted.items():
        silent = [kind for kind in kinds if kind not in answers.get(model_id, {}) and (model_id, kind) not in counted]
        for kind in silent:
            why = Judged(Verdict.NOT_MEASURED, _why_nobody_looked(world, model_id))
            answers.setdefault(model_id, {})[kind] = Measured(None, None, None, None, "", why)
    return answers, counted


def _why_nobody_looked(world: World, model_id: str) -> str:
    if world.config.analytics.source == "service-c":
        return 'Service C measures features only; analytics.source = "builtin" or "both" looks at it'
    return f"there is no [models.{model_id}] section: its label is not known"


def _idle(decision: Decision, relied: Kinds) -> bool:
    return decision.verdict is Verdict.NOT_MEASURED and decision.feature not in relied[decision.model_id]


def _looks(world: World, asked: Sequence[Asked]) -> dict[str, frozenset[datetime]]:
    """The newest rows' times of the CRITICAL scheduled looks in a row that come last, by feature."""
    names = sorted({feature for model in asked for feature in model.features})
    found: dict[str, set[datetime]] = defaultdict(set)
    ended: set[str] = set()
    for one in world.registry.scheduled_looks(names):
        if one.feature_name not in ended and one.critical:
            found[one.feature_name].add(one.window_end.replace(tzinfo=UTC))
        else:
            ended.add(one.feature_name)
    return {name: frozenset(ends) for name, ends in found.items()}


def _details(
    world: World,
    decisions: Sequence[Decision],
    evidence: Mapping[tuple[str, str], Evidence],
    decayed: Mapping[str, drift_decay.Decayed],
) -> tuple[dict[str, Any], ...]:
    source, rules = world.config.analytics.source, drift_analysts.rules(world)
    return tuple(detail(one, source, evidence, decayed, rules) for one in decisions)


def _pulls(
    world: World, drifted: Mapping[str, tuple[str, ...]], features: Sequence[Decision], beside: Sequence[Decision]
) -> dict[str, Pull]:
    verdicts = {(one.model_id, one.feature): one.verdict for one in beside}
    damaged: dict[str, list[str]] = defaultdict(list)
    for decision in features:
        if decision.verdict is Verdict.QUARANTINE:
            damaged[decision.model_id].append(decision.feature)
    counts = world.config.drift.retrain_on
    found = {}
    for model_id in sorted({*drifted, *(one.model_id for one in beside)}):
        causes = list(drifted.get(model_id, ())) if "features" in counts else []
        causes += [
            _KINDS[kind]
            for kind in counts
            if kind != "features" and verdicts.get((model_id, _KINDS[kind])) is Verdict.CRITICAL
        ]
        one = pull(trigger_of(world, model_id), causes, verdicts.get((model_id, DECAY)))
        if model_id in damaged and one.causes:
            # Broken rows make any model look bad, and the next one would learn them.
            quarantine = f"{', '.join(damaged[model_id])} {'are' if len(damaged[model_id]) > 1 else 'is'} in quarantine"
            blamed = any(cause in _KINDS.values() for cause in one.causes)
            why = "may be due to broken data" if blamed else "would be learnt together with broken data"
            one = Pull((), f"{', '.join(one.causes)} {why}: {quarantine}")
        found[model_id] = one
    return found


def _without_time(answered: Answered, asked: Sequence[Asked]) -> int:
    own = {
        feature: answered.own_rows[model.model_id, feature].without_time
        for model in asked
        for feature in model.features
        if (model.model_id, feature) in answered.own_rows
    }
    return sum(own.values()) + sum(rows.without_time for rows in answered.rows.values())


def _due_for_reminder(world: World) -> frozenset[tuple[str, str]]:
    """Pairs whose last alarm was told too long ago and that nobody has acknowledged."""
    if world.config.alarms.reminder is None:
        return frozenset()
    before = stored(world.clock.now()) - timedelta(seconds=seconds(world.config.alarms.reminder, "alarms.reminder"))
    last = {(alarm.model_id, alarm.feature): alarm for alarm in reversed(world.alarms.newest(limit=100_000))}
    return frozenset(
        pair for pair, alarm in last.items() if alarm.raised_at <= before and alarm.acknowledged_at is None
    )


def _shown(decisions: Sequence[Decision], evidence: Mapping[tuple[str, str], Evidence]) -> tuple[Shown, ...]:
    return tuple(
        Shown(decision.model_id, one)
        for decision in decisions
        if decision.verdict is not Verdict.PASS
        and (one := evidence.get((decision.model_id, decision.feature))) is not None
    )


def _learnt_until(world: World, row: ModelRow) -> datetime | None:
    """The newest row this version was trained or judged on, or a later challenger of it was judged on."""
    seen = [moment for moment in (_manifest_last(world, row), _last_judged(world, row.model_id)) if moment]
    return max(seen) if seen else None


def _manifest_last(world: World, row: ModelRow) -> datetime | None:
    truth = read_truth(world, row.model_id, row.azure_location or None)
    if truth.pointer is None:
        return None
    name = names.manifest(truth.location, row.model_id, truth.pointer.version)
    if world.artifacts.stat(name) is None:
        return None
    manifest = msgspec.json.decode(world.artifacts.read(name)[0])
    return _moment(manifest.get("snapshot", {}).get("last"))


def _last_judged(world: World, model_id: str) -> datetime | None:
    for job in world.runner.table.newest(kind=RETRAIN, limit=200):
        if job.result is not None and job.spec.get("model") == model_id:
            return _moment(job.result.get("snapshot", {}).get("last"))
    return None


def _moment(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
