from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicectl.drift.alarm_changes import alarm_changes
from servicectl.drift.policy import (
    Asked,
    Decision,
    FeatureRows,
    Findings,
    Measured,
    Settings,
    Verdict,
    affected,
    decide,
    quarantined,
    summary,
)

TRAINED = datetime(2026, 3, 1, tzinfo=UTC)
LATER = TRAINED + timedelta(days=1)
NOW = datetime(2026, 4, 1, tzinfo=UTC)

LOAN = Asked("Loan", "0.1.0", ("age",), TRAINED)
ENOUGH = FeatureRows(rows=30_000, without_time=0, newest=LATER)
CALM = Measured(psi=0.01, ks_stat=0.02, ks_p_value=0.6, kl_divergence=0.01, status="PASS")
SHIFTED = Measured(psi=0.8, ks_stat=0.3, ks_p_value=1e-30, kl_divergence=0.7, status="CRITICAL")


def one(
    measured: Measured | None = SHIFTED,
    rows: FeatureRows | None = ENOUGH,
    asked: Asked = LOAN,
    settings: Settings = Settings(),  # noqa: B008 -- frozen
) -> Decision:
    """The only decision of a look at one feature of one model."""
    answers = {asked.model_id: {"age": measured} if measured else {"other": CALM}}
    (decision,) = decide([asked], answers, {"age": rows} if rows else {}, settings, now=NOW).decisions
    return decision


def test_a_shifted_feature_with_enough_new_rows_is_critical_with_its_evidence() -> None:
    decision = one()

    assert decision.verdict is Verdict.CRITICAL
    assert (decision.status, decision.psi, decision.ks_stat) == ("CRITICAL", 0.8, 0.3)
    assert (decision.ks_p_value, decision.kl_divergence, decision.rows) == (1e-30, 0.7, 30_000)
    assert "PSI 0.800" in decision.reason


@pytest.mark.parametrize("status", ["PASS", "WARNING"])
def test_the_analysts_milder_words_stand(status: str) -> None:
    assert one(replace(CALM, status=status)).verdict == status


SILENT = Settings(watch_silence=True)


@pytest.mark.parametrize(
    ("history", "silence", "verdict"),
    [
        (40, 20, Verdict.PASS),
        (40, 21, Verdict.NOT_MEASURED),
        (2, 7, Verdict.PASS),  # a young feature store that is filled once a week
        (2, 8, Verdict.NOT_MEASURED),
        (1000, 100, Verdict.PASS),
        (1000, 101, Verdict.NOT_MEASURED),
    ],
)
def test_calm_is_not_measured_where_rows_have_stopped_coming(history: int, silence: int, verdict: Verdict) -> None:
    newest = NOW - timedelta(days=silence)
    rows = replace(ENOUGH, newest=newest, oldest=newest - timedelta(days=history))

    assert one(CALM, rows, settings=SILENT).verdict is verdict
    assert one(SHIFTED, rows, replace(LOAN, learnt_until=None), SILENT).verdict is Verdict.CRITICAL
    assert one(CALM, rows).verdict is Verdict.PASS
    assert one(CALM, replace(rows, oldest=None), settings=SILENT).verdict is Verdict.PASS


def test_a_shift_must_be_seen_in_looks_with_newer_rows_each_before_it_is_critical() -> None:
    def look(*ends: datetime, counts: bool = True, wanted: int = 2) -> Findings:
        settings, answers = Settings(looks_drifted=wanted), {"Loan": {"age": SHIFTED}}
        looks = {"age": frozenset(ends)}
        return decide([LOAN], answers, {"age": ENOUGH}, settings, now=NOW, looks=looks, counts_as_look=counts)

    first = look()
    assert (first.decisions[0].verdict, first.decisions[0].critical, first.drifted) == (Verdict.WARNING, True, ())
    assert "CRITICAL in 1 scheduled look(s) in a row, 2 are wanted" in first.decisions[0].reason
    assert look(LATER).drifted == ()  # the same rows
    assert look(TRAINED, counts=False).drifted == ()
    assert look(TRAINED).drifted == ("age",)
    assert look(TRAINED).decisions[0].verdict is Verdict.CRITICAL
    assert look(counts=False, wanted=1).decisions[0].verdict is Verdict.CRITICAL


def test_what_proves_to_be_damage_is_no_drift_of_that_model_and_none_at_all_if_of_all() -> None:
    house = replace(LOAN, model_id="House")
    answers = {"Loan": {"age": SHIFTED}, "House": {"age": SHIFTED}}
    found = decide([LOAN, house], answers, {"age": ENOUGH}, Settings(), now=NOW)
    features = {"Loan": ("age",), "House": ("age",)}

    one_of_them = quarantined(found, {("Loan", "age"): "all NULL"})
    both = quarantined(found, {("Loan", "age"): "all NULL", ("House", "age"): "all NULL"})

    assert [one.verdict for one in one_of_them.decisions] == [Verdict.QUARANTINE, Verdict.CRITICAL]
    assert affected(one_of_them, features) == {"House": ("age",)}
    assert (both.drifted, summary(both).outcome) == ((), "not-measured")


def test_a_model_the_answer_does_not_name_was_not_measured() -> None:
    findings = decide([LOAN], {"House": {"age": CALM}}, {"age": ENOUGH}, Settings())

    assert findings.decisions[0].verdict is Verdict.NOT_MEASURED
    assert "does not name Loan" in findings.decisions[0].reason
    assert summary(findings).outcome == "not-measured"


def test_an_empty_answer_was_not_a_measurement() -> None:
    findings = decide([LOAN], {}, {"age": ENOUGH}, Settings())

    assert findings.decisions[0].reason == "Service C's answer was empty"
    assert summary(findings).outcome == "not-measured"


def test_a_model_answered_without_any_feature_was_not_measured() -> None:
    (decision,) = decide([LOAN], {"Loan": {}}, {"age": ENOUGH}, Settings()).decisions

    assert (decision.verdict, decision.status, decision.psi) == (Verdict.NOT_MEASURED, "", None)
    assert "without any feature" in decision.reason


def test_a_feature_left_out_of_the_answer_was_not_measured() -> None:
    decision = one(measured=None)

    assert decision.verdict is Verdict.NOT_MEASURED
    assert decision.reason == "Service C's answer for Loan leaves it out"


@pytest.mark.parametrize("field", ["psi", "ks_stat", "ks_p_value", "kl_divergence"])
@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
@pytest.mark.parametrize("status", ["PASS", "CRITICAL"])
def test_a_figure_that_is_no_number_was_not_a_measurement(field: str, figure: float, status: str) -> None:
    decision = one(replace(SHIFTED, status=status, **{field: figure}))

    assert decision.verdict is Verdict.NOT_MEASURED
    assert decision.reason == f"Service C answered {field} = {figure}"
    assert getattr(decision, field) is None


@pytest.mark.parametrize("status", ["", "critical", "QUARANTINE", "NOT_MEASURED"])
def test_a_word_service_c_does_not_know_was_not_a_measurement(status: str) -> None:
    decision = one(replace(CALM, status=status))

    assert decision.verdict is Verdict.NOT_MEASURED
    assert repr(status) in decision.reason


@pytest.mark.parametrize("rows", [None, FeatureRows(0, 0, None)])
def test_a_feature_no_row_has_was_not_measured_whatever_was_answered(rows: FeatureRows | None) -> None:
    decision = one(CALM, rows)

    assert (decision.verdict, decision.reason) == (Verdict.NOT_MEASURED, "no row has it")


def test_a_production_model_without_features_is_not_silently_clear() -> None:
    findings = decide([replace(LOAN, features=())], {"Loan": {}}, {}, Settings())

    assert [(d.feature, d.verdict) for d in findings.decisions] == [("", Verdict.NOT_MEASURED)]
    assert summary(findings).outcome == "not-measured"


def test_critical_on_too_few_rows_is_a_warning_that_says_how_many() -> None:
    decision = one(rows=FeatureRows(rows=19_999, without_time=0, newest=LATER))

    assert (decision.verdict, decision.status) == (Verdict.WARNING, "CRITICAL")
    assert "not reliable on 19,999 rows (fewer than 20,000)" in decision.reason
    assert one(rows=FeatureRows(rows=20_000, without_time=0, newest=LATER)).verdict is Verdict.CRITICAL


def test_rows_without_a_time_do_not_count_towards_the_least_number() -> None:
    assert one(rows=FeatureRows(rows=20_001, without_time=2, newest=LATER)).verdict is Verdict.WARNING


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (replace(SHIFTED, psi=0.5, ks_stat=0.3), Verdict.WARNING),
        (replace(SHIFTED, psi=0.2, ks_stat=0.05), Verdict.WARNING),
        (replace(SHIFTED, psi=0.05, ks_stat=0.3), Verdict.WARNING),
        (replace(SHIFTED, psi=0.05, ks_stat=0.3, ks_p_value=0.2), Verdict.PASS),
        (replace(SHIFTED, psi=0.05, ks_stat=0.05), Verdict.PASS),
        (replace(SHIFTED, psi=0.51), Verdict.CRITICAL),
    ],
)
def test_critical_that_does_not_exceed_the_floor_is_judged_by_the_analysts_other_rules(
    measured: Measured, verdict: Verdict
) -> None:
    assert one(measured, settings=Settings(effect_floor_psi=0.5)).verdict is verdict


@pytest.mark.parametrize("status", ["CRITICAL", "WARNING"])
@pytest.mark.parametrize("newest", [TRAINED, TRAINED - timedelta(days=9)])
def test_drift_the_model_has_already_learnt_from_is_a_pass(status: str, newest: datetime) -> None:
    decision = one(replace(SHIFTED, status=status), FeatureRows(30_000, 0, newest))

    assert decision.verdict is Verdict.PASS
    assert decision.reason == "no rows newer than those 0.1.0 was trained and judged on"
    assert decision.status == status


def test_a_model_of_unknown_history_keeps_the_analysts_word() -> None:
    assert one(asked=replace(LOAN, learnt_until=None)).verdict is Verdict.CRITICAL


def test_naive_times_are_utc() -> None:
    rows = FeatureRows(30_000, 0, TRAINED.replace(tzinfo=None))

    assert one(rows=rows).verdict is Verdict.PASS
    assert one(rows=replace(rows, newest=LATER.replace(tzinfo=None))).verdict is Verdict.CRITICAL


@pytest.mark.parametrize(
    "rows",
    [
        FeatureRows(rows=30_000, without_time=30_000, newest=None),
        FeatureRows(rows=30_000, without_time=15_001, newest=LATER),
    ],
)
@pytest.mark.parametrize("measured", [None, CALM, SHIFTED])
def test_rows_without_times_are_broken_data_whatever_was_answered(rows: FeatureRows, measured: Measured | None) -> None:
    decision = one(measured, rows)

    assert decision.verdict is Verdict.QUARANTINE
    assert "have no usable time" in decision.reason


def test_half_of_the_rows_without_times_is_still_measurable() -> None:
    assert one(rows=FeatureRows(60_000, 30_000, LATER)).verdict is Verdict.CRITICAL


def test_rows_from_the_future_are_broken_data() -> None:
    decision = one(CALM, FeatureRows(30_000, 0, datetime(9999, 12, 31, tzinfo=UTC)))

    assert decision.verdict is Verdict.QUARANTINE
    assert "9999-12-31" in decision.reason


def test_a_model_that_learnt_from_the_future_is_not_deaf_to_the_present() -> None:
    assert one(asked=replace(LOAN, learnt_until=datetime(2999, 1, 1, tzinfo=UTC))).verdict is Verdict.CRITICAL


def test_what_was_never_asked_is_named_and_changes_nothing() -> None:
    answers = {"Loan": {"age": CALM, "height": SHIFTED}, "Ghost": {"age": CALM}}

    findings = decide([LOAN], answers, {"age": ENOUGH, "height": ENOUGH}, Settings())

    assert findings.unexpected == ("Ghost", "Loan/height")
    assert summary(findings).outcome == "clear"
    assert affected(findings, {"Loan": ("age",)}) == {}


def features_of(*models: Asked) -> dict[str, tuple[str, ...]]:
    return {model.model_id: model.features for model in models}


def test_every_model_with_a_critical_feature_is_affected_whichever_the_answer_named() -> None:
    house = Asked("House", "2.0.0", ("rooms", "age"), TRAINED)
    coffee = Asked("Coffee", "1.0.0", ("rooms",), TRAINED)
    models = (LOAN, house, coffee)
    rows = {"age": ENOUGH, "rooms": ENOUGH}

    findings = decide(models, {"Loan": {"age": SHIFTED}, "Coffee": {"rooms": CALM}}, rows, Settings())

    assert affected(findings, features_of(*models)) == {"Loan": ("age",), "House": ("age",)}
    assert [d.verdict for d in findings.decisions if d.model_id == "House"] == [Verdict.NOT_MEASURED] * 2


def test_a_model_that_already_learnt_from_the_new_rows_is_not_affected() -> None:
    fresh = Asked("Fresh", "3.0.0", ("age",), LATER)
    models = (LOAN, fresh)

    findings = decide(models, {"Loan": {"age": SHIFTED}, "Fresh": {"age": SHIFTED}}, {"age": ENOUGH}, Settings())

    assert affected(findings, features_of(*models)) == {"Loan": ("age",)}


def test_a_stale_model_is_affected_though_only_a_fresh_one_was_answered() -> None:
    fresh = Asked("Fresh", "3.0.0", ("age",), LATER)
    models = (LOAN, fresh)

    findings = decide(models, {"Fresh": {"age": SHIFTED}}, {"age": ENOUGH}, Settings())

    assert affected(findings, features_of(*models)) == {"Loan": ("age",)}
    assert summary(findings).outcome == "drift"


@pytest.mark.parametrize(
    ("measured", "rows"),
    [
        (SHIFTED, FeatureRows(30_000, 30_000, None)),
        (SHIFTED, FeatureRows(500, 0, LATER)),
        (replace(SHIFTED, psi=float("nan")), ENOUGH),
        (replace(SHIFTED, status="WARNING"), ENOUGH),
    ],
)
def test_only_a_sound_critical_makes_a_model_affected(measured: Measured, rows: FeatureRows) -> None:
    findings = decide([LOAN], {"Loan": {"age": measured}}, {"age": rows}, Settings())

    assert affected(findings, features_of(LOAN)) == {}


def test_drift_beats_not_measured_which_stays_visible() -> None:
    model = replace(LOAN, features=("age", "height", "weight"))
    rows = {"age": ENOUGH, "height": ENOUGH, "weight": FeatureRows(10, 10, None)}

    told = summary(decide([model], {"Loan": {"age": SHIFTED}}, rows, Settings()))

    assert (told.outcome, told.not_measured) == ("drift", 2)
    assert told.counts == {
        Verdict.PASS: 0,
        Verdict.WARNING: 0,
        Verdict.CRITICAL: 1,
        Verdict.NOT_MEASURED: 1,
        Verdict.QUARANTINE: 1,
    }


def test_quarantined_data_alone_is_not_clear() -> None:
    told = summary(decide([LOAN], {"Loan": {"age": CALM}}, {"age": FeatureRows(10, 10, None)}, Settings()))

    assert (told.outcome, told.not_measured) == ("not-measured", 1)


def look(verdict: Verdict) -> Decision:
    return replace(one(), verdict=verdict, reason="why")


P, W, C, N, Q = Verdict.PASS, Verdict.WARNING, Verdict.CRITICAL, Verdict.NOT_MEASURED, Verdict.QUARANTINE


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (None, P, None),
        (None, W, "raised"),
        (None, C, "raised"),
        (P, P, None),
        (P, Q, "raised"),
        (W, W, None),
        (W, C, "worse"),
        (W, Q, "worse"),
        (C, C, None),
        (C, W, None),
        (C, P, "cleared"),
        (W, P, "cleared"),
        (Q, P, "cleared"),
        (Q, C, "raised"),
        (Q, W, "raised"),
        (C, Q, "raised"),
        (P, N, "not-measured"),
        (C, N, "not-measured"),
    ],
)
def test_an_alarm_sounds_on_a_change_of_state_only(before: Verdict | None, after: Verdict, kind: str | None) -> None:
    changes = alarm_changes({("Loan", "age"): before} if before else {}, [look(after)])

    assert [change.kind for change in changes] == ([kind] if kind else [])
    for change in changes:
        assert (change.model_id, change.feature, change.verdict) == ("Loan", "age", after)
        assert change.text == f"{after} ({kind}): feature age of Loan 0.1.0: why"


def test_a_standing_alarm_survives_a_look_that_measured_nothing() -> None:
    pair = ("Loan", "age")
    silent = frozenset({pair})

    assert alarm_changes({pair: C}, [look(N)], unmeasured=silent) == ()
    assert alarm_changes({pair: C}, [look(C)], unmeasured=silent)[0].kind == "measured-again"
    assert alarm_changes({pair: C}, [look(P)], unmeasured=silent)[0].kind == "cleared"
    assert alarm_changes({}, [look(P)], unmeasured=silent)[0].kind == "measured-again"


figures = st.floats(allow_nan=True, allow_infinity=True)
times = st.none() | st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31))  # noqa: DTZ001 -- naive on purpose
measurements = st.builds(
    Measured, figures, figures, figures, figures, st.sampled_from(["PASS", "WARNING", "CRITICAL", "CRITICAL", "?"])
)
names = st.sampled_from(["a", "b", "c"])
counted = st.integers(0, 50_000).flatmap(
    lambda rows: st.builds(FeatureRows, st.just(rows), st.integers(0, rows), times)
)


@st.composite
def looks(draw: st.DrawFn) -> tuple[tuple[Asked, ...], Findings]:
    models = tuple(
        Asked(name, "1.0.0", tuple(draw(st.lists(names, max_size=3))), draw(times))
        for name in sorted(draw(st.sets(st.sampled_from(["M", "N"]))))
    )
    answers = draw(st.dictionaries(st.sampled_from(["M", "N", "X"]), st.dictionaries(names, measurements)))
    rows = draw(st.dictionaries(names, counted))
    return models, decide(models, answers, rows, Settings(), now=draw(st.sampled_from([None, NOW])))


@given(looks())
def test_every_asked_pair_has_exactly_one_verdict_and_no_figure_that_is_no_number(
    look: tuple[tuple[Asked, ...], Findings],
) -> None:
    models, findings = look

    pairs = [(decision.model_id, decision.feature) for decision in findings.decisions]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == {(m.model_id, f) for m in models for f in m.features or ("",)}
    for decision in findings.decisions:
        assert decision.reason
        for figure in (decision.psi, decision.ks_stat, decision.ks_p_value, decision.kl_divergence):
            assert figure is None or -float("inf") < figure < float("inf")


@given(looks())
def test_the_outcome_is_drift_exactly_if_a_model_is_to_be_retrained(look: tuple[tuple[Asked, ...], Findings]) -> None:
    models, findings = look

    told = summary(findings)
    assert (told.outcome == "drift") == bool(affected(findings, features_of(*models)))
    assert sum(told.counts.values()) == len(findings.decisions)
    if told.outcome == "clear":
        assert all(decision.verdict in (P, W) for decision in findings.decisions)
