from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from bench import drift_null
from servicectl.drift.comparison import Evidence, Part, compare
from servicectl.drift.judgement import Rules, judge
from servicectl.drift.policy import (
    Asked,
    FeatureRows,
    Judged,
    Measured,
    Settings,
    Verdict,
    affected,
    decide,
    summary,
)
from tests.drift.making import START, after, before

RANDOM = np.random.default_rng(3)
SHIFTED = Evidence(
    "age", "number", 4000, 0, 1000, 0, 1.0, psi=0.3, kl=0.2, estate_psi=0.3, ks=0.2, p_value=1e-9,
    reference_first=START, current_last=START + timedelta(days=9),
)  # fmt: skip
RULES = Rules()


def judged(one: Evidence, rules: Rules = RULES, *others: Evidence) -> Judged:
    found = judge([one, *others], rules)[one.feature].judged
    assert found is not None
    return found


def calm(count: int) -> list[Evidence]:
    return [replace(SHIFTED, feature=f"calm {n}", ks=0.01, p_value=(n + 1) / (count + 1)) for n in range(count)]


def test_a_clear_shift_is_critical_at_its_first_look() -> None:
    found = judged(SHIFTED)

    assert found.verdict is Verdict.CRITICAL
    assert found.reason == "KS 0.200 (p 1e-09), PSI 0.300, 1,000 values against 4,000"


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"ks": 0.1}, Verdict.CRITICAL),
        ({"ks": 0.0999}, Verdict.WARNING),
        ({"ks": 0.05}, Verdict.WARNING),
        ({"ks": 0.0499}, Verdict.PASS),
        ({"p_value": 0.01}, Verdict.CRITICAL),
        ({"p_value": 0.011}, Verdict.PASS),
        ({"kind": "category", "ks": 0.0, "share_change": 0.07}, Verdict.CRITICAL),
        ({"kind": "category", "ks": 0.0, "share_change": 0.069}, Verdict.WARNING),
        ({"current_rows": 99}, Verdict.NOT_MEASURED),
        ({"current_absent": 901}, Verdict.NOT_MEASURED),
        ({"reference_rows": 99}, Verdict.NOT_MEASURED),
        ({"broken": "the newest window is empty"}, Verdict.QUARANTINE),
    ],
)
def test_a_verdict_needs_significance_size_and_enough_values(change: dict[str, object], verdict: Verdict) -> None:
    assert judged(replace(SHIFTED, **change)).verdict is verdict


def test_the_more_features_are_looked_at_the_less_one_p_value_says() -> None:
    lucky = replace(SHIFTED, p_value=0.005)

    assert judged(lucky).verdict is Verdict.CRITICAL
    assert judged(lucky, RULES, *calm(19)).verdict is Verdict.PASS
    assert "(p 0.1 among 20 features)" in judged(lucky, RULES, *calm(19)).reason


def test_a_feature_that_cannot_be_judged_does_not_weaken_the_others() -> None:
    broken = [replace(one, broken="x") for one in calm(19)]

    assert judged(replace(SHIFTED, p_value=0.005), RULES, *broken).verdict is Verdict.CRITICAL


def test_a_calibrated_feature_needs_its_own_size_of_shift() -> None:
    assert judged(SHIFTED, Rules(cut_offs={"age": 2.1})).verdict is Verdict.WARNING
    assert judged(SHIFTED, Rules(cut_offs={"age": 1.9})).verdict is Verdict.CRITICAL
    assert judged(SHIFTED, Rules(cut_offs={"other": 9.0})).verdict is Verdict.CRITICAL


def test_a_shift_that_is_already_over_is_a_warning_when_it_must_be_seen_in_more_parts() -> None:
    once = replace(SHIFTED, parts=(Part(333, 0.5, 0.0), Part(333, 0.02, 0.0), Part(333, 0.03, 0.0)))

    assert judged(once, Rules(parts_drifted=1)).verdict is Verdict.CRITICAL
    assert judged(once, Rules(parts_drifted=2)).verdict is Verdict.WARNING
    assert "seen in 1 of 3 parts" in judged(once, Rules(parts_drifted=2)).reason


def test_values_that_go_missing_are_a_warning_before_they_are_a_flood() -> None:
    thinner = replace(SHIFTED, ks=0.01, p_value=0.9, current_absent=100, absent_p_value=1e-9)

    found = judged(thinner)

    assert found.verdict is Verdict.WARNING
    assert "10.0% of the newest values are absent, 0.0% of the older ones were" in found.reason


def test_sentinels_outside_all_that_was_are_a_warning_however_little_they_move_the_distribution() -> None:
    random = np.random.default_rng(5)
    values = random.normal(size=1000)
    values[random.permutation(1000)[:40]] = -999

    found = judged(compare("age", before(random.normal(size=4000)), after(values)))

    assert found.verdict is Verdict.WARNING
    assert "4.0% of the newest values are outside the range of all older ones" in found.reason


def test_values_beyond_a_small_sample_are_no_sentinels() -> None:
    told = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        told.append(judged(compare("age", before(random.standard_t(2, 120)), after(random.standard_t(2, 200)))).verdict)

    assert told.count(Verdict.WARNING) + told.count(Verdict.CRITICAL) <= 8  # 2 in 100 checks are budgeted


def test_a_feature_that_stopped_while_others_went_on_is_stale_data() -> None:
    other = replace(SHIFTED, feature="other", current_last=START + timedelta(days=19))

    found = judged(SHIFTED, RULES, other)

    assert found.verdict is Verdict.QUARANTINE
    assert "other features have rows until 2026-01-20" in found.reason
    assert judged(SHIFTED, RULES, replace(other, current_last=START + timedelta(days=17))).verdict is Verdict.CRITICAL


NEWER = FeatureRows(20_000, 0, START + timedelta(days=30))
MODELS = (
    Asked("Loan", "1.0.0", ("age", "city"), START),
    Asked("House", "1.0.0", ("age",), START),
    Asked("Coffee", "1.0.0", ("city",), START),
)


def look(
    evidence: list[Evidence], named: tuple[str, ...] = ("Loan",), **rows: FeatureRows
) -> dict[str, tuple[str, ...]]:
    """The models that one look at these features would retrain; the answer names only some."""
    answer = judge(evidence, RULES)
    counted = {one.feature: rows.get(one.feature, NEWER) for one in evidence}
    findings = decide(MODELS, dict.fromkeys(named, answer), counted, Settings(), now=START + timedelta(days=31))
    return dict(affected(findings, {model.model_id: model.features for model in MODELS}))


SOUND = RANDOM.normal(50, 8, 4000)
CITIES = RANDOM.integers(0, 5, 4000).astype(float)


def city(new: np.ndarray) -> Evidence:
    return compare("city", before(CITIES), after(new), declared_category=True)


CALM_CITY = city(RANDOM.integers(0, 5, 1000).astype(float))


def test_a_real_shift_retrains_every_model_that_uses_the_feature_also_those_not_answered() -> None:
    shifted = compare("age", before(SOUND), after(RANDOM.normal(54, 8, 1000)))

    assert look([shifted, CALM_CITY]) == {"Loan": ("age",), "House": ("age",)}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(np.array([]), id="empty window"),
        pytest.param(np.full(1000, np.nan), id="null flood"),
        pytest.param(np.where(np.arange(1000) % 3, np.nan, SOUND[:1000]), id="partial null flood"),
        pytest.param(np.zeros(1000), id="constant column"),
        pytest.param(SOUND[:1000] * 1000, id="unit change"),
    ],
)
def test_damaged_numbers_retrain_nothing(damage: np.ndarray) -> None:
    broken = compare("age", before(SOUND), after(damage))

    assert broken.broken
    assert look([broken, CALM_CITY]) == {}


def test_a_flood_of_new_categories_and_stale_times_retrain_nothing() -> None:
    flood = city(RANDOM.integers(3, 8, 1000).astype(float))
    calm_age = compare("age", before(SOUND), after(SOUND[:1000]))
    shifted = compare("age", before(SOUND), after(RANDOM.normal(54, 8, 1000)))

    assert look([calm_age, flood]) == {}
    stale = Settings(stale_after=timedelta(days=2))
    answer = {"Loan": judge([shifted, CALM_CITY], RULES)}
    rows = {"age": NEWER, "city": NEWER}
    findings = decide(MODELS, answer, rows, stale, now=START + timedelta(days=33))
    assert {decision.verdict for decision in findings.decisions} == {Verdict.QUARANTINE}
    assert findings.drifted == ()


def test_damage_is_quarantined_and_told_as_not_measured() -> None:
    broken = judge([compare("age", before(SOUND), after(np.zeros(1000)))], RULES)
    asked = [Asked("House", "1.0.0", ("age",), START)]

    findings = decide(asked, {"House": broken}, {"age": NEWER}, Settings())

    assert [decision.verdict for decision in findings.decisions] == [Verdict.QUARANTINE]
    assert summary(findings).outcome == "not-measured"


def test_what_was_told_does_not_clear_by_a_hairs_breadth() -> None:
    close = replace(SHIFTED, ks=0.045)  # 0.05 is worth a warning
    asked = [Asked("House", "1.0.0", ("age",), START)]

    def verdict(one: Evidence, told: Verdict) -> Verdict:
        answer = {"House": judge([one], RULES)}
        findings = decide(asked, answer, {"age": NEWER}, Settings(), previous={("House", "age"): told})
        return findings.decisions[0].verdict

    assert verdict(close, Verdict.PASS) is Verdict.PASS
    assert verdict(close, Verdict.WARNING) is Verdict.WARNING
    assert verdict(replace(close, ks=0.039), Verdict.WARNING) is Verdict.PASS
    assert verdict(replace(close, p_value=0.3), Verdict.WARNING) is Verdict.PASS


def test_service_cs_pass_after_a_warning_clears_only_well_below_its_limits() -> None:
    asked = [Asked("House", "1.0.0", ("age",), START)]

    def verdict(psi: float, told: Verdict) -> Verdict:
        answer = {"House": {"age": Measured(psi, 0.02, 0.6, 0.01, "PASS")}}
        findings = decide(asked, answer, {"age": NEWER}, Settings(), previous={("House", "age"): told})
        return findings.decisions[0].verdict

    assert verdict(0.09, Verdict.PASS) is Verdict.PASS
    assert verdict(0.09, Verdict.CRITICAL) is Verdict.WARNING
    assert verdict(0.07, Verdict.CRITICAL) is Verdict.PASS


def test_a_service_c_feature_has_its_own_calibrated_limit() -> None:
    asked = [Asked("House", "1.0.0", ("age",), START)]
    answer = {"House": {"age": Measured(0.4, 0.2, 1e-9, 0.1, "CRITICAL")}}

    findings = decide(asked, answer, {"age": NEWER}, Settings(psi_cut_offs={"age": 0.5}))

    assert findings.decisions[0].verdict is Verdict.WARNING
    assert "floor of 0.5" in findings.decisions[0].reason


def test_by_the_defaults_false_alarms_stay_in_their_budget_and_real_shifts_are_found() -> None:
    found = drift_null.run(quick=True)

    assert found["windows"] == 1040
    assert found["false_critical_rate"] <= found["budget_upper"]
    assert found["power"] >= 0.9
    assert found["service_c_power"] < 0.9
    assert (found["broken_retrains"], found["broken_quarantined"]) == (0, 1)
    assert found["dependent_calibrated_rate"] < found["dependent_false_critical_rate"]


def test_six_kinds_of_damage_are_told_as_six_kinds_and_retrain_nothing() -> None:
    random = np.random.default_rng(1)
    columns = drift_null.damaged(random)
    evidence = [compare(name, *pair, declared_category="categories" in name) for name, pair in columns.items()]
    told = {name: one.judged.reason for name, one in judge(evidence, Rules()).items() if one.judged is not None}

    words = [
        "is empty",
        "NULL or no number",
        "values are 55",
        "another unit",
        "never occurred before",
        "newest row is from",
    ]
    assert [word for word, name in zip(words, columns, strict=True) if word in told[name]] == words
    assert drift_null.broken_look(random) == (dict.fromkeys(columns, Verdict.QUARANTINE), ())
