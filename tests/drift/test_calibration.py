from __future__ import annotations

import numpy as np
import pytest

from servicectl.drift.calibration import beyond, cut_off
from tests.parts.estate import OLD_ROWS, Saved, Site


def test_the_cut_off_of_independent_rows_is_what_chance_alone_exceeds() -> None:
    random = np.random.default_rng(2)
    found = cut_off(random.normal(size=19_000), 0.01)

    assert found is not None
    # KS of 4,000 against 1,000 rows has its 99 % point at 1.63 sqrt(1/4000 + 1/1000).
    assert found.ks == pytest.approx(1.63 * (1 / 4000 + 1 / 1000) ** 0.5, rel=0.25)
    assert found.places == pytest.approx(1.9, abs=0.01)


def test_a_feature_that_swings_by_itself_gets_a_higher_cut_off() -> None:
    random = np.random.default_rng(2)
    steady = random.normal(size=19_000)
    swinging = steady + np.sin(np.arange(19_000) / 900)

    calm, moved = cut_off(steady, 0.001), cut_off(swinging, 0.001)

    assert calm is not None
    assert moved is not None
    assert moved.ks > 3 * calm.ks
    assert moved.estate_psi > 3 * calm.estate_psi


def test_a_category_has_a_cut_off_of_its_share() -> None:
    flag = (np.random.default_rng(2).random(19_000) < 0.3).astype(float)
    found = cut_off(flag, 0.01)

    assert found is not None
    assert 0.02 < found.share_change < 0.08


def test_a_category_of_many_values_has_a_cut_off_too_and_a_text_only_of_its_shares() -> None:
    codes = np.random.default_rng(2).integers(0, 40, 19_000).astype(float)

    assert cut_off(codes, 0.01).share_change == 0  # type: ignore[union-attr]  # taken for a number
    told, text = cut_off(codes, 0.01, category=True), cut_off(codes, 0.01, text=True)

    assert told is not None
    assert text is not None
    assert 0.005 < told.share_change < 0.05
    assert told.ks > 0
    assert (text.share_change, text.ks, text.estate_psi) == (told.share_change, 0, 0)


def test_a_short_history_has_no_cut_off() -> None:
    assert cut_off(np.arange(500.0), 0.01) is None


def test_beyond_the_resamples_the_tail_goes_on_and_within_them_it_is_their_quantile() -> None:
    effects = np.random.default_rng(1).exponential(size=2000)

    assert beyond(effects, 0.5) == pytest.approx(np.log(2), rel=0.1)
    assert beyond(effects, 0.001) == pytest.approx(np.log(1000), rel=0.15)


def test_calibrate_stores_cut_offs_and_later_checks_use_them(site: Site, published: Saved) -> None:
    site.restore(published)
    site.settings |= {"ANALYTICS_SOURCE": "builtin", "DRIFT_REFERENCE": "window", "DRIFT_BESIDE": "[]"}
    # `usage` swings by far in its own past: between 0 and 20, once in 600 hours.
    site.estate.more_rows(
        "UPDATE features_table SET value = 10 + 10 * sin(epoch(event_timestamp) / 350000) WHERE feature_name = 'usage'"
    )
    site.estate.more_rows(
        "INSERT INTO features_table SELECT 'new-' || i, name, CASE name WHEN 'usage' THEN 15 + (i % 7) / 10 ELSE 30 + i % 10 END, "
        f"TIMESTAMP '2024-01-01' + to_hours({OLD_ROWS} + i), NULL FROM range(130) AS r(i), "
        "(VALUES ('usage'), ('tenure')) AS n(name)"
    )
    before = site.ok("drift-check", "--queue-only")
    told = site.ok("drift-check", "--calibrate", "--budget", "0.02")["calibration"]
    after = site.ok("drift-check", "--queue-only")

    assert told["budget"] == 0.02
    assert set(told["features"]) == {"tenure", "usage"}
    assert told["features"]["usage"]["ks"] > 0.3

    def verdicts(run: dict[str, object]) -> dict[str, str]:
        found = {one["feature"]: one["verdict"] for one in run["jobs"][0]["result"]["decisions"]}  # type: ignore[index]  # parsed JSON
        return {feature: verdict for feature, verdict in found.items() if not feature.startswith("(")}

    assert verdicts(before) == {"tenure": "CRITICAL", "usage": "CRITICAL"}
    assert verdicts(after)["tenure"] == "CRITICAL"
    assert verdicts(after)["usage"] != "CRITICAL"
    assert list(site.state.glob("calibration-*")) == []
