from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from servicectl.training.evidence import Evidence, compare, entity_groups, time_blocks


def at(seconds: NDArray[np.int64]) -> NDArray[np.datetime64]:
    return seconds.astype("datetime64[s]").astype("datetime64[us]")


def drifting(chance: np.random.Generator, size: int, memory: float) -> NDArray[np.float64]:
    """A series that remembers: first-order autoregression with unit variance."""
    noise = chance.normal(size=size + 1000) * np.sqrt(1 - memory**2)
    return np.asarray(lfilter([1], [1, -memory], noise)[1000:])


def mean_of(values: NDArray[np.float64], keep: NDArray[np.bool_]) -> float:
    return float(values[keep].mean())


def test_blocks_are_contiguous_equal_and_never_cut_an_instant() -> None:
    seconds = np.sort(np.random.default_rng(0).integers(0, 400, size=3000))
    blocks = time_blocks(at(seconds))

    assert np.all(np.diff(blocks) >= 0)
    assert blocks[-1] == 29
    assert all(len(set(blocks[seconds == second])) == 1 for second in set(seconds.tolist()))
    assert np.bincount(blocks).min() > 80


def test_few_rows_make_few_blocks() -> None:
    assert time_blocks(at(np.arange(75)))[-1] + 1 == 7
    assert time_blocks(at(np.zeros(500, dtype=np.int64)))[-1] + 1 == 1


def test_entities_count_as_groups_only_where_they_repeat() -> None:
    assert entity_groups(np.arange(1000)) is None
    assert entity_groups(np.zeros(1000, dtype=np.int64)) is None
    groups = entity_groups(np.arange(1000) % 60)
    assert groups is not None
    assert len(set(groups.tolist())) == 30


def test_few_entities_are_groups_of_their_own_and_fewer_than_five_are_none() -> None:
    groups = entity_groups(np.arange(1000) % 12)
    assert groups is not None
    assert len(set(groups.tolist())) == 12
    assert entity_groups(np.arange(1000) % 4) is None


def test_an_advantage_on_one_of_twelve_entities_is_not_shown() -> None:
    entities = np.arange(3000) % 12
    advantage = np.where(entities == 3, 1.0, 0.0) + np.random.default_rng(4).normal(size=3000) * 0.1
    blocks = time_blocks(at(np.arange(3000)))
    blind = compare(lambda keep: float(advantage[keep].mean()), blocks, None, 0.05)
    seeing = compare(lambda keep: float(advantage[keep].mean()), blocks, entity_groups(entities), 0.05)

    assert blind is not None
    assert seeing is not None
    assert seeing.low < 0 < blind.low


def test_equal_models_are_seldom_promoted_although_rows_resemble_their_neighbours() -> None:
    size, rounds, alpha = 3000, 200, 0.05
    chance = np.random.default_rng(11)
    blocks = time_blocks(at(np.arange(size)))
    promoted = promoted_by_a_test_of_independent_rows = 0
    for _ in range(rounds):
        # Right or wrong for days on end, both models equally often.
        advantage = (drifting(chance, size, 0.97) > 1).astype(float) - (drifting(chance, size, 0.97) > 1)
        found = compare(partial(mean_of, advantage), blocks, None, alpha)
        assert found is not None
        promoted += found.low > 0
        promoted_by_a_test_of_independent_rows += advantage.mean() > 1.645 * advantage.std() / np.sqrt(size)

    assert promoted / rounds < 0.1
    assert promoted_by_a_test_of_independent_rows / rounds > 0.25


def test_a_real_advantage_is_seen() -> None:
    chance = np.random.default_rng(5)
    advantage = 0.1 + (drifting(chance, 3000, 0.9) > 1).astype(float) - (drifting(chance, 3000, 0.9) > 1)
    found = compare(lambda keep: float(advantage[keep].mean()), time_blocks(at(np.arange(3000))), None, 0.05)

    assert isinstance(found, Evidence)
    assert 0 < found.low < found.difference < found.high


def test_an_advantage_with_few_entities_is_worth_less() -> None:
    chance = np.random.default_rng(2)
    entities = chance.integers(0, 40, size=3000)
    advantage = chance.normal(size=40)[entities] + chance.normal(size=3000)
    blocks = time_blocks(at(np.arange(3000)))

    blind = compare(lambda keep: float(advantage[keep].mean()), blocks, None, 0.05)
    seeing = compare(lambda keep: float(advantage[keep].mean()), blocks, entity_groups(entities), 0.05)

    assert blind is not None
    assert seeing is not None
    assert seeing.high - seeing.low > 2 * (blind.high - blind.low)


def test_a_figure_undefined_without_one_block_is_no_evidence() -> None:
    blocks = time_blocks(at(np.arange(600)))

    assert compare(lambda keep: 1.0 if keep[:20].all() else None, blocks, None, 0.05) is None
