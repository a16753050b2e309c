"""What a drift measurement means: from what was asked, answered and counted to verdicts, retrains and alarms.

Pure functions over frozen values. The analyst is Service C, whose word is weighed here, or the builtin statistics,
which come with a judgement of their own (`judgement`). Service C measures a *feature* (old rows against new rows of the one feature
store), whichever model it names in its answer; a *verdict* is about a model and a feature, since models have
learnt from different rows. So the judgement is made in two parts: `drifted` holds the features whose measurement
is bad, and each decision says whether the model has anything new to learn there.

Times may be aware or naive; naive ones are UTC, as DuckDB's TIMESTAMP columns hold them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from servicectl.drift.values import (
    Asked,
    Decision,
    FeatureRows,
    Findings,
    Judged,
    Measured,
    Settings,
    Summary,
    Verdict,
)

__all__ = ["Asked", "Decision", "FeatureRows", "Findings", "Judged", "Measured", "Settings", "Summary", "Verdict"]
__all__ += ["affected", "decide", "quarantined", "summary"]

_Seen = Callable[[str, FeatureRows | None], int]

# The thresholds Service C itself judges by, in its order: PSI on 10 equal-width bins, then the two-sample
# Kolmogorov-Smirnov statistic together with its p-value.
ANALYST_WARNING_PSI = 0.1
ANALYST_WARNING_KS = 0.1
ANALYST_WARNING_P = 0.05

CLOCK_TOLERANCE = timedelta(days=1)
"""Rows dated further ahead than this are broken data; a day covers a writer that stores local time."""

_SILENCE = 0.5  # of the time that a feature's rows cover; what `judgement` allows a feature beside others, too
_LEAST_SILENCE, _MOST_SILENCE = timedelta(days=7), timedelta(days=100)

NO_LOOKS: Mapping[str, frozenset[datetime]] = {}


def decide(
    asked: Iterable[Asked],
    answers: Mapping[str, Mapping[str, Measured]],
    rows: Mapping[str, FeatureRows],
    settings: Settings,
    *,
    now: datetime | None = None,
    previous: Mapping[tuple[str, str], Verdict] | None = None,
    own_rows: Mapping[tuple[str, str], FeatureRows] | None = None,
    looks: Mapping[str, frozenset[datetime]] = NO_LOOKS,
    counts_as_look: bool = True,
) -> Findings:
    """Given what was asked, answered (by model, then feature) and counted (by feature), decide every asked pair.

    A feature that `rows` leaves out has no rows. With `now`, rows dated in the future are taken for what they
    are: broken data. Without it they would count as news for ever, or hide all later news. `previous` are the
    verdicts last told: what was told does not clear by a hair's breadth. `own_rows` are counts by model and feature,
    where a model's rows are not the feature store's. `looks`: the newest rows' times (UTC) of the last looks in a row
    that were CRITICAL, by feature; this one adds its own if it `counts_as_look`.
    """
    told, own = previous or {}, own_rows or {}
    models = tuple(asked)

    def seen(feature: str, counted: FeatureRows | None) -> int:
        if settings.looks_drifted == 1:
            return 1  # any look will do, a manual one too
        end = _utc(counted.newest) if counts_as_look and counted is not None and counted.newest is not None else None
        return len(looks.get(feature, frozenset()) | ({end} if end is not None else set()))

    decisions = tuple(
        _decision(
            model,
            feature,
            answers,
            own.get((model.model_id, feature), rows.get(feature)),
            settings,
            now=now,
            before=told.get((model.model_id, feature), Verdict.PASS),
            seen=seen,
        )
        for model in models
        for feature in dict.fromkeys(model.features) or ("",)
    )
    wanted = {(decision.model_id, decision.feature) for decision in decisions}
    known = {model.model_id for model in models}
    unexpected = {name for name in answers if name not in known} | {
        f"{name}/{feature}"
        for name, answer in answers.items()
        if name in known
        for feature in answer
        if (name, feature) not in wanted
    }
    drifted = _drifted(answers, rows, own, settings, now, seen) & {feature for _, feature in wanted}
    return Findings(decisions, tuple(sorted(drifted)), tuple(sorted(unexpected)))


def quarantined(findings: Findings, broken: Mapping[tuple[str, str], str]) -> Findings:
    """Given what is wrong with the rows of some (model, feature), seen after the decision: broken data, no drift."""
    decisions = tuple(
        replace(one, verdict=Verdict.QUARANTINE, reason=f"{why} ({one.reason})")
        if (why := broken.get((one.model_id, one.feature)))
        else one
        for one in findings.decisions
    )
    sound = {one.feature for one in decisions if one.verdict is not Verdict.QUARANTINE}
    return Findings(decisions, tuple(name for name in findings.drifted if name in sound), findings.unexpected)


def affected(findings: Findings, features_of: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
    """Given the findings and the features of every production model, the models to retrain, each with the bad ones.

    A model is in it for each drifted feature it uses, also when the answer named another model for it or was
    silent about this one; it is left out where it has already learnt from the feature's newest rows, or was compared
    with what it learnt from and found calm. NOT_MEASURED
    and QUARANTINE never make a feature bad.
    """
    drifted = set(findings.drifted)
    learnt = {(decision.model_id, decision.feature) for decision in findings.decisions if not decision.concerned}
    bad = {
        model_id: tuple(feature for feature in features if feature in drifted and (model_id, feature) not in learnt)
        for model_id, features in features_of.items()
    }
    return {model_id: features for model_id, features in bad.items() if features}


def summary(findings: Findings) -> Summary:
    """Given the findings, the look's outcome: "drift" exactly if some asked model is `affected`; else
    "not-measured" if anything could not be measured or was quarantined; else "clear"."""
    counts = Counter(decision.verdict for decision in findings.decisions)
    not_measured = counts[Verdict.NOT_MEASURED] + counts[Verdict.QUARANTINE]
    drift = any(decision.concerned and decision.feature in findings.drifted for decision in findings.decisions)
    outcome: Literal["drift", "not-measured", "clear"] = (
        "drift" if drift else "not-measured" if not_measured else "clear"
    )
    return Summary(outcome, {verdict: counts[verdict] for verdict in Verdict}, not_measured)


def _drifted(
    answers: Mapping[str, Mapping[str, Measured]],
    rows: Mapping[str, FeatureRows],
    own: Mapping[tuple[str, str], FeatureRows],
    settings: Settings,
    now: datetime | None,
    seen: _Seen,
) -> set[str]:
    # Two answers for one feature differ when rows landed between them; one CRITICAL is enough.
    return {
        feature
        for model_id, answer in answers.items()
        for feature, measured in answer.items()
        if (counted := own.get((model_id, feature), rows.get(feature))) is not None
        and not _broken(counted, settings, now)
        and not _unreadable(measured, settings)
        and _judge(feature, measured, counted, settings)[0] is Verdict.CRITICAL
        and seen(feature, counted) >= settings.looks_drifted
    }


def _decision(
    model: Asked,
    feature: str,
    answers: Mapping[str, Mapping[str, Measured]],
    counted: FeatureRows | None,
    settings: Settings,
    *,
    now: datetime | None,
    before: Verdict,
    seen: _Seen,
) -> Decision:
    measured = answers.get(model.model_id, {}).get(feature)
    newer = _has_newer(model, counted, now)
    critical = False

    def says(verdict: Verdict, reason: str) -> Decision:
        return Decision(
            model_id=model.model_id,
            version=model.version,
            feature=feature,
            verdict=verdict,
            status=measured.status if measured else "",
            psi=_finite(measured.psi) if measured else None,
            ks_stat=_finite(measured.ks_stat) if measured else None,
            ks_p_value=_finite(measured.ks_p_value) if measured else None,
            kl_divergence=_finite(measured.kl_divergence) if measured else None,
            rows=counted.rows if counted else 0,
            reason=reason,
            newer=newer,
            own=measured is not None and measured.judged is not None and measured.judged.own,
            newest=counted.newest if counted else None,
            critical=critical,
        )

    if not feature:
        return says(Verdict.NOT_MEASURED, f"{model.model_id} lists no feature, so there was nothing to ask for")
    if counted is None or counted.rows == 0:
        told = measured.judged if counted is None and measured is not None else None
        return says(Verdict.NOT_MEASURED, told.reason if told else "no row has it")
    if broken := _broken(counted, settings, now):
        return says(Verdict.QUARANTINE, broken)
    if measured is None:
        return says(Verdict.NOT_MEASURED, _silence(model.model_id, answers, settings))
    if unreadable := _unreadable(measured, settings):
        return says(Verdict.NOT_MEASURED, unreadable)
    verdict, reason = _judge(feature, measured, counted, settings)
    critical = verdict is Verdict.CRITICAL
    if critical and (times := seen(feature, counted)) < settings.looks_drifted:
        verdict = Verdict.WARNING
        reason = f"{reason}; CRITICAL in {times} scheduled look(s) in a row, {settings.looks_drifted} are wanted"
    if verdict is Verdict.PASS and before in (Verdict.WARNING, Verdict.CRITICAL):
        verdict, reason = _lingering(measured, reason, settings)
    if verdict in (Verdict.WARNING, Verdict.CRITICAL) and not newer:
        verdict, reason = Verdict.PASS, f"no rows newer than those {model.version} was trained and judged on"
    if verdict is Verdict.PASS and (silent := _silent(counted, settings, now)):
        return says(Verdict.NOT_MEASURED, silent)
    return says(verdict, reason)


def _silence(model_id: str, answers: Mapping[str, Mapping[str, Measured]], settings: Settings) -> str:
    if not answers:
        return f"{settings.analyst}'s answer was empty"
    if model_id not in answers:
        return f"{settings.analyst}'s answer does not name {model_id}"
    if not answers[model_id]:
        return f"{settings.analyst} answered {model_id} without any feature"
    return f"{settings.analyst}'s answer for {model_id} leaves it out"


def _unreadable(measured: Measured, settings: Settings) -> str:
    if measured.judged is not None:
        return ""
    figures = {
        "psi": measured.psi,
        "ks_stat": measured.ks_stat,
        "ks_p_value": measured.ks_p_value,
        "kl_divergence": measured.kl_divergence,
    }
    for name, figure in figures.items():
        if figure is None or not math.isfinite(figure):
            return f"{settings.analyst} answered {name} = {figure}"
    if measured.status not in (Verdict.PASS, Verdict.WARNING, Verdict.CRITICAL):
        return f"{settings.analyst} answered the unknown status {measured.status!r}"
    return ""


def _broken(counted: FeatureRows, settings: Settings, now: datetime | None) -> str:
    # The windows are shares of the rows in time order, the old one from the middle on. Rows of year 1 come
    # first in that order: with more than half of them the old window is made of rows from no time at all.
    if counted.without_time * 2 > counted.rows or counted.newest is None:
        return f"{counted.without_time:,} of {counted.rows:,} rows have no usable time, so old and new cannot be told"
    if _in_the_future(counted.newest, now):
        return f"its newest row is dated {counted.newest:%Y-%m-%d}, which is still to come"
    if settings.stale_after is not None and now is not None and _utc(now) - _utc(counted.newest) > settings.stale_after:
        return f"its newest row is from {counted.newest:%Y-%m-%d %H:%M}: nothing has come for longer than drift.stale_after"
    return ""


def _silent(counted: FeatureRows, settings: Settings, now: datetime | None) -> str:
    """Rows that have stopped coming: without newer ones, the newest 5 % were compared long ago, and are again."""
    if not settings.watch_silence or now is None or counted.newest is None or counted.oldest is None:
        return ""
    newest = _utc(counted.newest)
    usual = min(max((newest - _utc(counted.oldest)) * _SILENCE, _LEAST_SILENCE), _MOST_SILENCE)
    silence = _utc(now) - newest
    if silence <= usual:
        return ""
    return (
        f"nothing has come for {silence.days} days (its newest row is from {newest:%Y-%m-%d %H:%M}): whether it has moved "
        "since cannot be told"
    )


def _judge(feature: str, measured: Measured, counted: FeatureRows, settings: Settings) -> tuple[Verdict, str]:
    """The verdict on a readable measurement of sound rows, before asking what a model has learnt."""
    if measured.judged is not None:
        return measured.judged.verdict, measured.judged.reason
    status, (psi, ks_stat, ks_p_value) = Verdict(measured.status), _figures(measured)
    figures = f"PSI {psi:.3f}, KS {ks_stat:.3f} (p {ks_p_value:.2g})"
    if status is not Verdict.CRITICAL:
        return status, figures
    timed = counted.rows - counted.without_time
    if timed < settings.min_rows:
        return Verdict.WARNING, (
            f"{figures}; {settings.analyst} says CRITICAL, which is not reliable on {timed:,} rows (fewer than "
            f"{settings.min_rows:,})"
        )
    floor = max(settings.effect_floor_psi, settings.psi_cut_offs.get(feature, 0.0))
    if psi <= floor:
        shifted = ks_stat > ANALYST_WARNING_KS and ks_p_value < ANALYST_WARNING_P
        verdict = Verdict.WARNING if psi > ANALYST_WARNING_PSI or shifted else Verdict.PASS
        return verdict, (
            f"{figures}; {settings.analyst} says CRITICAL, but the effect is not above the floor of {floor:g}"
        )
    return status, figures


def _figures(measured: Measured) -> tuple[float, float, float]:
    assert measured.psi is not None
    assert measured.ks_stat is not None
    assert measured.ks_p_value is not None
    return measured.psi, measured.ks_stat, measured.ks_p_value


def _lingering(measured: Measured, reason: str, settings: Settings) -> tuple[Verdict, str]:
    """A PASS after something was told: it stays a WARNING while the effect is close to what is worth one."""
    if measured.judged is not None:
        strength = measured.judged.strength
    else:
        psi, ks_stat, ks_p_value = _figures(measured)
        shifted = ks_stat / ANALYST_WARNING_KS if ks_p_value < ANALYST_WARNING_P else 0.0
        strength = max(psi / ANALYST_WARNING_PSI, shifted)
    if strength <= settings.clear_ratio:
        return Verdict.PASS, reason
    return Verdict.WARNING, f"{reason}; not yet below {settings.clear_ratio:.0%} of what is worth a warning"


def _has_newer(model: Asked, counted: FeatureRows | None, now: datetime | None) -> bool:
    if counted is None or counted.newest is None:
        return False
    if model.learnt_until is None or _in_the_future(model.learnt_until, now):
        return True
    return _utc(counted.newest) > _utc(model.learnt_until)


def _in_the_future(moment: datetime, now: datetime | None) -> bool:
    # Written as a difference: year 9999 plus a day would overflow.
    return now is not None and _utc(moment) - _utc(now) > CLOCK_TOLERANCE


def _finite(figure: float | None) -> float | None:
    return figure if figure is not None and math.isfinite(figure) else None


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
