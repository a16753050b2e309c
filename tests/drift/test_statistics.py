from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import stats

from servicectl.drift import statistics as ours

# Whole numbers make ties; the others hardly any.
NUMBERS = st.one_of(st.integers(-4, 4).map(float), st.floats(-1e6, 1e6, allow_nan=False))
COLUMNS = arrays.arrays(np.float64, st.integers(1, 60), elements=NUMBERS)
COUNTS = st.lists(st.integers(0, 400), min_size=2, max_size=8).map(np.array)


def in_order(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sort(values)


@given(COLUMNS, COLUMNS)
def test_kolmogorov_smirnov_is_scipys(reference: NDArray[np.float64], current: NDArray[np.float64]) -> None:
    found = ours.kolmogorov(in_order(reference), in_order(current))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        wanted = stats.ks_2samp(reference, current)
    assert found.statistic == pytest.approx(wanted.statistic, abs=1e-9)
    assert found.p_value == pytest.approx(wanted.pvalue, abs=1e-9)


@pytest.mark.parametrize("sizes", [(20_001, 500), (300, 15_000), (12_000, 12_000)])
@pytest.mark.parametrize("shift", [0.0, 0.02, 0.5])
def test_kolmogorov_smirnov_of_many_rows_is_scipys(sizes: tuple[int, int], shift: float) -> None:
    random = np.random.default_rng(7)
    reference, current = random.normal(size=sizes[0]), random.normal(shift, size=sizes[1]).round(2)

    found = ours.kolmogorov(in_order(reference), in_order(current))

    wanted = stats.ks_2samp(reference, current)
    assert abs(found.statistic - wanted.statistic) < 1e-9
    assert abs(found.p_value - wanted.pvalue) < 1e-9


@given(COLUMNS, COLUMNS)
def test_the_wasserstein_distance_is_scipys(reference: NDArray[np.float64], current: NDArray[np.float64]) -> None:
    found = ours.wasserstein(in_order(reference), in_order(current))

    assert found == pytest.approx(stats.wasserstein_distance(reference, current), rel=1e-9, abs=1e-9)


@given(COLUMNS, COLUMNS)
def test_the_estates_bins_are_numpys_histogram_over_the_linspace_edges(
    reference: NDArray[np.float64], current: NDArray[np.float64]
) -> None:
    first, second = in_order(reference), in_order(current)
    edges = ours.estate_edges(first, second)

    together = np.concatenate([reference, current])
    if together.min() == together.max():
        assert edges is None
        return
    assert edges is not None
    for column in (first, second):
        wanted = np.histogram(column, np.linspace(together.min(), together.max(), 11))[0]
        assert ours.estate_counts(column, edges).tolist() == wanted.tolist()


@given(COLUMNS, COLUMNS)
def test_every_value_falls_into_exactly_one_decile_bin(
    reference: NDArray[np.float64], current: NDArray[np.float64]
) -> None:
    edges = ours.decile_edges(in_order(reference))
    for column in (reference, current):
        counts = ours.binned(in_order(column), edges)
        wanted = [int(((column >= low) & (column < high)).sum()) for low, high in _bins(edges)]
        assert counts.tolist() == wanted
        assert counts.sum() == len(column)


def _bins(edges: NDArray[np.float64]) -> list[tuple[float, float]]:
    all_edges = [-math.inf, *edges.tolist(), math.inf]
    return list(itertools.pairwise(all_edges))


@given(COUNTS, st.data())
def test_psi_and_kl_follow_the_textbook(first: NDArray[np.int64], data: st.DataObject) -> None:
    second = np.array(data.draw(st.lists(st.integers(0, 400), min_size=len(first), max_size=len(first))))
    first, second = first + 1, second + 1

    p, q = ours.shares(first), ours.shares(second)

    textbook = [(a / first.sum(), b / second.sum()) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert ours.psi(p, q) == pytest.approx(sum((b - a) * math.log(b / a) for a, b in textbook), abs=1e-9)
    assert ours.kl_divergence(p, q) == pytest.approx(sum(b * math.log(b / a) for a, b in textbook), abs=1e-9)
    assert ours.kl_divergence(p, q) == pytest.approx(float(stats.entropy(q, p)), abs=1e-9)
    assert ours.psi(p, q) == pytest.approx(ours.kl_divergence(p, q) + ours.kl_divergence(q, p), abs=1e-9)


def test_an_empty_bin_counts_as_half_a_row_and_not_as_a_catastrophe() -> None:
    reference, current = np.array([100, 100]), np.array([200, 0])

    assert ours.shares(current).tolist() == [1.0, 0.0025]
    assert ours.psi(ours.shares(reference), ours.shares(current)) == pytest.approx(
        0.5 * math.log(2) + 0.4975 * math.log(200)
    )
    assert ours.estate_shares(current).tolist() == [1.0, 1e-10]


@given(COUNTS, st.data())
def test_chi_square_is_scipys_where_no_category_is_rare(first: NDArray[np.int64], data: st.DataObject) -> None:
    second = np.array(data.draw(st.lists(st.integers(0, 400), min_size=len(first), max_size=len(first))))
    first, second = first + 20, second + 20
    wanted = stats.chi2_contingency(np.stack([first, second]), correction=False)
    if wanted.expected_freq.min() < 5:
        return

    found = ours.chi_square(first, second)

    assert (found.statistic, found.p_value) == pytest.approx((wanted.statistic, wanted.pvalue), abs=1e-9)


@given(COUNTS, st.data())
def test_chi_square_of_rare_categories_stays_a_test(first: NDArray[np.int64], data: st.DataObject) -> None:
    second = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(first), max_size=len(first))))
    if not first.sum() or not second.sum():
        return

    found = ours.chi_square(first, second)

    assert 0.0 <= found.p_value <= 1.0
    assert found.cells >= 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array))
@settings(max_examples=50)
def test_benjamini_hochberg_is_scipys(p_values: NDArray[np.float64]) -> None:
    wanted = stats.false_discovery_control(p_values, method="bh")

    assert ours.benjamini_hochberg(p_values).tolist() == pytest.approx(wanted.tolist(), abs=1e-12)


def test_categories_of_text_and_of_numbers_are_counted_side_by_side() -> None:
    values, first, second = ours.category_counts(np.array(["b", "a", "b"]), np.array(["c", "b"]))

    assert (values, first.tolist(), second.tolist()) == (["a", "b", "c"], [1, 2, 0], [0, 1, 1])
    assert ours.category_counts(np.array([1.0]), np.array([0.0, 1.0]))[0] == [0.0, 1.0]


def test_a_value_that_most_rows_have_is_a_bin_of_its_own_so_that_its_share_counts() -> None:
    before = np.sort(np.concatenate([np.full(9500, -1.0), np.arange(500.0)]))
    after = np.sort(np.concatenate([np.full(5000, -1.0), np.arange(5000.0) / 10]))
    p, q = (ours.shares(ours.binned(one, ours.decile_edges(before))) for one in (before, after))

    assert ours.psi(p, q) == pytest.approx((0.5 - 0.95) * np.log(0.5 / 0.95) + (0.5 - 0.05) * np.log(0.5 / 0.05))
    assert len(ours.decile_edges(np.arange(1000.0))) == 9


def test_text_kept_as_objects_is_counted_as_text_is() -> None:
    random = np.random.default_rng(4)
    first, second = (random.choice(["b", "a", "é", ""], size=size) for size in (300, 50))

    values, *counts = ours.category_counts(first, second)
    as_objects, *counted = ours.category_counts(first.astype(object), second.astype(object))

    assert as_objects == values == ["", "a", "b", "é"]
    assert [column.tolist() for column in counted] == [column.tolist() for column in counts]
    assert [column.dtype for column in counted] == [np.int64, np.int64]
