from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servicectl.training.column_statistics import NumericColumn

QUANTILES = (0.01, 0.25, 0.5, 0.9, 0.99)
values = st.lists(
    st.one_of(st.just(float("nan")), st.floats(-1e300, 1e300), st.integers(-9, 9)),
    min_size=1,
    max_size=60,
)


def streamed(column: np.ndarray, parts: int) -> NumericColumn:
    found = NumericColumn()
    for part in np.array_split(column, parts):
        found.first(part)
    found.prepare(QUANTILES)
    found = pickle.loads(pickle.dumps(found))
    for part in np.array_split(column, parts):
        found.second(part)
    found.finish(QUANTILES)
    return found


@settings(max_examples=40, deadline=None)
@given(values, st.integers(1, 4))
def test_any_column_in_any_parts_is_described_as_numpy_does(given_values: list[float], parts: int) -> None:
    column = np.array(given_values, dtype=np.float64)
    found = streamed(column, parts)
    present = column[~np.isnan(column)]

    assert (found.count, found.nulls) == (len(present), len(column) - len(present))
    if len(present) == 0:
        return
    assert (found.low, found.high) == (present.min(), present.max())
    assert found.mean == pytest.approx(present.mean(), rel=1e-9, abs=1e-12 * np.abs(present).max())
    for quantile in QUANTILES:
        expected = np.quantile(present, quantile)
        assert found.quantile(quantile) == pytest.approx(expected, rel=1e-5, abs=1e-5 * np.abs(present).max())
    histogram = found.histogram()
    if histogram is not None:
        counts, edges = np.histogram(present, bins=10)
        assert histogram == (edges.tolist(), counts.tolist())


def test_heavy_tails_and_whole_numbers_have_their_true_quantiles() -> None:
    chance = np.random.default_rng(1)
    tailed = np.concatenate([chance.standard_cauchy(50_000), [1e12, -1e15]])
    whole = chance.integers(-1000, 200_000, 50_000).astype(np.float64)

    for quantile in QUANTILES:
        assert streamed(tailed, 7).quantile(quantile) == pytest.approx(np.quantile(tailed, quantile), rel=1e-5)
        assert streamed(whole, 7).quantile(quantile) == pytest.approx(np.quantile(whole, quantile), rel=1e-12)


def test_moments_do_not_lose_a_small_spread_beside_a_large_mean() -> None:
    column = 1e9 + np.random.default_rng(2).normal(size=100_000)

    assert streamed(column, 50).variance == pytest.approx(column.var(), rel=1e-6)
