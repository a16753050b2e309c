from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from servicectl.drift.comparison import Column, Evidence, compare
from tests.drift.making import START, after, before

RANDOM = np.random.default_rng(5)
OLD = RANDOM.normal(100, 15, 4000)
NEW = RANDOM.normal(100, 15, 1000)


def compared(new: NDArray[np.generic], old: NDArray[np.generic] = OLD, **how: bool | int) -> Evidence:
    return compare("age", before(old), after(new), **how)  # type: ignore[arg-type]  # each test names what it passes


def test_a_number_has_every_figure_and_they_are_the_textbooks() -> None:
    found = compared(NEW + 7)

    wanted = stats.ks_2samp(OLD, NEW + 7)
    assert (found.kind, found.reference_rows, found.current_rows, found.broken) == ("number", 4000, 1000, "")
    assert (found.ks, found.p_value) == pytest.approx((wanted.statistic, wanted.pvalue), abs=1e-9)
    edges = np.quantile(OLD, np.arange(1, 10) / 10)
    p, q = (np.bincount(np.searchsorted(edges, column, side="right"), minlength=10) for column in (OLD, NEW + 7))
    p, q = p / 4000, q / 1000
    assert found.psi == pytest.approx(float(((q - p) * np.log(q / p)).sum()), abs=1e-9)
    assert found.wasserstein == pytest.approx(stats.wasserstein_distance(OLD, NEW + 7) / OLD.std(), abs=1e-9)
    assert found.histogram is not None
    assert sum(found.histogram.current) == 1000


def test_absent_values_are_counted_and_left_out_of_the_figures() -> None:
    holed = NEW.copy()
    holed[:200] = np.nan
    holed[200] = np.inf

    found = compared(holed)

    assert (found.current_rows, found.current_absent, found.broken) == (1000, 201, "")
    assert found.absent_change == pytest.approx(0.201)
    assert found.absent_p_value < 1e-10
    assert found.ks == pytest.approx(stats.ks_2samp(OLD, NEW[201:]).statistic)


def test_few_values_are_compared_as_categories() -> None:
    old, new = (RANDOM.random(4000) < 0.3).astype(float), (RANDOM.random(1000) < 0.4).astype(float)

    found = compared(new, old)

    table = [[int((column == value).sum()) for value in (0, 1)] for column in (old, new)]
    assert found.kind == "category"
    assert found.p_value == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue)
    assert found.share_change == pytest.approx(abs(new.mean() - old.mean()))
    assert found.histogram is not None
    assert found.histogram.labels == ("0", "1")


def test_text_is_compared_as_categories_without_a_distance() -> None:
    found = compared(np.array(["a"] * 60 + ["c"] * 40), np.array(["a"] * 50 + ["b"] * 50))

    assert (found.kind, found.ks, found.estate_psi) == ("category", None, None)
    assert found.share_change == pytest.approx(0.5)
    assert found.new_values == pytest.approx(0.4)


def test_the_current_window_is_cut_into_disjoint_parts_in_order_of_time() -> None:
    late = np.concatenate([NEW[:500], NEW[500:] + 60])

    found = compared(late, parts=4)

    assert [part.rows for part in found.parts] == [250] * 4
    assert [part.ks > 0.5 for part in found.parts] == [False, False, True, True]


def test_values_beyond_the_old_range_are_counted() -> None:
    assert compared(np.concatenate([NEW[:900], np.full(100, 400.0)])).out_of_range == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize(
    ("new", "says"),
    [
        (np.array([]), "the newest window is empty"),
        (np.full(1000, np.nan), "all 1,000 newest values are NULL"),
        (np.where(np.arange(1000) % 2, np.nan, NEW), "50% of the newest values are NULL or no number, 0% of the older"),
        (np.full(1000, 100.0), "all 1,000 newest values are 100"),
        (NEW * 1000, "times 1e\\+03: another unit"),
        (NEW / 60, "times 0.0167: another unit"),
        (NEW * 1.8 + 32, "times 1.8 plus 32: another unit"),
        ((NEW - 32) / 1.8, "times 0.556 plus -17.8: another unit"),
    ],
)
def test_damaged_data_is_told_from_drift(new: NDArray[np.float64], says: str) -> None:
    import re

    assert re.search(says, compared(new).broken)


@pytest.mark.parametrize(
    "new", [NEW + 7, NEW + 60, NEW * 1.3, NEW * 2, np.concatenate([NEW[:500], NEW[500:] * 5]), NEW**2]
)
def test_drift_is_not_taken_for_damage(new: NDArray[np.float64]) -> None:
    assert compared(new).broken == ""


def test_a_flood_of_new_categories_is_damage_where_categories_are_declared() -> None:
    old, new = RANDOM.integers(0, 4, 4000).astype(float), RANDOM.integers(3, 7, 1000).astype(float)

    assert compared(new, old).broken == ""
    assert "are categories that never occurred before" in compared(new, old, declared_category=True).broken


def test_a_flag_that_hardly_ever_moves_is_not_broken_when_it_stands_still() -> None:
    rare = np.zeros(4000)
    rare[:8] = 1

    assert compared(np.zeros(1000), rare).broken == ""


def test_a_column_that_never_moved_and_does_not_is_calm() -> None:
    found = compared(np.full(1000, 3.0), np.full(4000, 3.0))

    assert (found.broken, found.psi, found.ks, found.p_value) == ("", 0.0, 0.0, 1.0)


def test_a_clock_that_stands_still_is_damage() -> None:
    found = compare("age", Column(OLD, START, START), Column(NEW, START, START))

    assert "the clock stands still" in found.broken


def test_a_reference_without_values_compares_nothing() -> None:
    found = compared(NEW, np.full(4000, np.nan))

    assert (found.psi, found.ks, found.broken) == (None, None, "")
