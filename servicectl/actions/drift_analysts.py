"""Who measures drift: Service C, the builtin statistics, or both side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from servicectl import log
from servicectl.actions import drift_calibrate
from servicectl.config import seconds
from servicectl.drift.agreement import Agreement, agreements
from servicectl.drift.comparison import Evidence
from servicectl.drift.judgement import Rules, judge_all
from servicectl.drift.trigger import LABEL, PREDICTION
from servicectl.drift.values import Asked, FeatureRows, Judged, Measured, Settings, Verdict
from servicectl.errors import BadAnswer, PartyUnavailable

if TYPE_CHECKING:
    from servicectl.actions.world import World
    from servicectl.estate.registry import ModelRow

Answers = Mapping[str, Mapping[str, Measured]]


@dataclass(frozen=True)
class Beside:
    """What is looked at besides features: the labels of models, by model, and the models whose answers are."""

    labels: Mapping[str, str] = field(default_factory=dict)
    predictions: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Answered:
    """`answers` by model and feature, LABEL and PREDICTION being features too; `rows` are counts by both. Where Service
    C alone was asked, `rows` are by feature only, and the rest is empty."""

    answers: Answers
    rows: Mapping[str, FeatureRows]
    own_rows: Mapping[tuple[str, str], FeatureRows] = field(default_factory=dict)
    evidence: Mapping[tuple[str, str], Evidence] = field(default_factory=dict)
    agreements: tuple[Agreement, ...] = ()


def settings(world: World) -> Settings:
    """The configuration in the policy's words."""
    drift = world.config.drift
    own_history = drift.stale_after in (None, "auto")
    stale = (
        None
        if own_history or drift.stale_after == "never"
        else timedelta(seconds=seconds(str(drift.stale_after), "drift.stale_after"))
    )
    analyst = "Service C" if world.config.analytics.source == "service-c" else "the builtin analytics"
    cut_offs = {name: one.estate_psi for name, one in drift_calibrate.load(world).items()}
    return Settings(
        drift.min_rows,
        drift.effect_floor_psi,
        psi_cut_offs=cut_offs,
        stale_after=stale,
        watch_silence=own_history,
        analyst=analyst,
        looks_drifted=drift.looks_drifted if world.config.analytics.source == "service-c" else 1,
    )


def rules(world: World) -> Rules:
    """The configuration in the builtin judgement's words."""
    drift = world.config.drift
    return Rules(
        min_rows=drift.min_window_rows,
        false_alarms=drift.false_alarms,
        effect_floor_ks=drift.effect_floor_ks,
        effect_floor_share=drift.effect_floor_share,
        parts_drifted=drift.parts_drifted,
        cut_offs={
            name: max(one.ks / drift.effect_floor_ks, one.share_change / drift.effect_floor_share)
            for name, one in drift_calibrate.load(world).items()
        },
    )


def ask(world: World, rows: Sequence[ModelRow], asked: Sequence[Asked], folder: Path, beside: Beside) -> Answered:
    """Given production rows, have every feature measured as configured. Raises as the parties that are asked.

    With "both", Service C is a second opinion: its silence is told, and stops nothing. Service C knows of nothing
    `beside`.
    """
    source = world.config.analytics.source
    if source == "service-c":
        counted = world.registry.feature_rows(sorted({feature for model in asked for feature in model.features}))
        of_store = {
            name: FeatureRows(one.rows, one.without_time, one.newest, one.oldest) for name, one in counted.items()
        }
        return Answered(_service_c(world, asked), of_store)
    theirs: Answers = {}
    if source == "both":
        try:
            theirs = _service_c(world, asked)
        except (PartyUnavailable, BadAnswer) as silent:
            log.warning(f"{silent.message}; the builtin analytics decide without a second opinion")
    return _builtin(world, rows, asked, folder, theirs, beside, compared=source == "both")


def _service_c(world: World, asked: Sequence[Asked]) -> Answers:
    analytics = world.config.analytics
    measurements = sum(len(model.features) for model in asked)
    answer = world.analytics.ask(analytics.deadline_base_s + analytics.deadline_per_feature_s * measurements)
    return {
        model.model_id: {
            metric.feature: Measured(metric.psi, metric.ks_stat, metric.ks_p_value, metric.kl_divergence, metric.status)
            for metric in model.metrics
        }
        for model in answer
    }


def _builtin(
    world: World,
    rows: Sequence[ModelRow],
    asked: Sequence[Asked],
    folder: Path,
    theirs: Answers,
    beside: Beside,
    *,
    compared: bool,
) -> Answered:
    from servicectl.actions.drift_windows import measure

    found = measure(world, rows, folder, labels=beside.labels, predictions=beside.predictions)
    wanted = [(model.model_id, feature) for model in asked for feature in model.features]
    wanted += [(model_id, LABEL) for model_id in beside.labels]
    wanted += [(model_id, PREDICTION) for model_id in sorted(beside.predictions)]
    counted = {pair: one for pair in wanted if pair not in found.failed and (one := found.of(*pair)) is not None}
    judged = judge_all(dict(counted.values()), rules(world), found.place)
    ambiguous = found.ambiguous()
    answers: dict[str, dict[str, Measured]] = {model.model_id: {} for model in asked}
    for (model_id, feature), (key, _) in counted.items():
        word = theirs.get(model_id, {}).get(feature)
        own = key[0] == "model" or feature in ambiguous
        answers[model_id][feature] = _with(judged[key], word.status if word else "", own=own)
    for (model_id, feature), why in found.failed.items():
        nothing = Judged(Verdict.NOT_MEASURED, why)
        answers[model_id][feature] = Measured(None, None, None, None, "", nothing)
    second: tuple[Agreement, ...] = ()
    if compared:
        by_window = found.by_window()
        alone = judge_all(by_window, rules(world))
        second = agreements(theirs, by_window, {name: one.judged.verdict for name, one in alone.items() if one.judged})
    evidence = {pair: one for pair, (_, one) in counted.items()}
    return Answered(answers, {}, found.rows, evidence, second)


def _with(measured: Measured, word: str, *, own: bool) -> Measured:
    assert measured.judged is not None
    return replace(measured, status=word, judged=replace(measured.judged, own=own))
