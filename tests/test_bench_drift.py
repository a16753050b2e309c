"""The drift benchmarks compare like with like, and the replayed loop is servicectl's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import pytest

from bench import _drift_programs
from bench._replay_floor import Stream, opened
from bench._replay_loop import Loop, Settings
from bench.replay import replayed

ROWS = 4000


def test_every_way_gives_the_figures_of_scipy(tmp_path: Path) -> None:
    features = ["f0", "f1"]
    _drift_programs.make(tmp_path, features, 20_000, 4000)

    told = {way: _drift_programs.WAYS[way](tmp_path, features) for way in ("servicectl", "check", "sql", "scipy")}

    for way, tolerance in (("servicectl", 1e-9), ("check", 1e-9), ("sql", 1e-6)):
        for name in features:
            assert told[way][name] == pytest.approx(told["scipy"][name], abs=tolerance), way
    assert told["scipy"]["f0"][2] > 3 * told["scipy"]["f1"][2]  # f0 has moved


@pytest.fixture
def stream(tmp_path: Path) -> Callable[[str], Stream]:
    """Given SQL of the label over `x`, `noise` and `i`, a stream in which `x` wanders off steadily, for a linear model:
    the streams' own estimator takes a minute of OpenMP's waiting on a busy machine."""

    def make(label: str) -> Stream:
        path = tmp_path / "made.parquet"
        with duckdb.connect(config={"threads": 1}) as connection:
            connection.execute("SELECT setseed(0.25)")
            connection.execute(
                f"""COPY (SELECT TIMESTAMP '2024-01-01' + to_minutes(i::BIGINT) AS at, x, ({label})::INTEGER AS y
                FROM (SELECT i, random() + 0.5 * i / {ROWS} AS x, random() AS noise FROM range({ROWS}) AS r(i)) ORDER BY i)
                TO '{path}' (FORMAT parquet)"""
            )
        found = opened(path, "at", "y", "classification", tmp_path)
        return replace(found, spec=msgspec.structs.replace(found.spec, estimator=None, params={}))

    return make


def looked(stream: Stream, steps: int = 10, **settings: Any) -> tuple[Loop, list[int]]:
    """A loop after its looks, and where each began."""
    first = ROWS // 5
    ends = [first + (ROWS - first) * step // steps for step in range(1, steps + 1)]
    loop = Loop.begun(stream, Settings(**settings), first)
    for night, end in enumerate(ends, 1):
        loop.look(night, end)
    return loop, ends


def test_a_champion_that_loses_its_score_is_replaced_by_one_that_the_gate_promotes(
    stream: Callable[[str], Stream],
) -> None:
    changing = stream(f"(x > 0.7) <> (i > {ROWS // 2})")

    loop, _ = looked(changing, trigger="decay", heldout_fraction=0.1)

    assert loop.promoted >= 1
    assert all(one.causes == {"(decay)"} for one in loop.retrains)
    assert loop.judged[0] > ROWS // 2


def test_challengers_that_are_no_better_spend_the_gates_error_and_then_wait_for_the_breaker(
    stream: Callable[[str], Stream],
) -> None:
    loop, _ = looked(stream("noise > 0.5"))

    assert (loop.promoted, len(loop.retrains)) == (0, 3)
    assert loop.held_back >= 4
    assert loop.earlier == 3


def test_drift_is_judged_against_the_sample_that_training_keeps(stream: Callable[[str], Stream]) -> None:
    steady = stream("x > 0.7")
    first = steady.trained(ROWS)

    assert len(first.sample) == len(first.rows) == int(ROWS * 0.8)
    assert np.array_equal(first.sample.times, first.rows.times)


def test_a_window_is_chosen_by_the_product(stream: Callable[[str], Stream]) -> None:
    changing = stream(f"(x > 0.7) <> (i > {ROWS // 2})")

    everything, chosen = changing.trained(ROWS), changing.trained(ROWS, window_auto=True)

    assert len(chosen.rows) < len(everything.rows)
    assert chosen.rows.times[-1] == everything.rows.times[-1]


def test_a_retrain_at_every_step_is_the_measure_of_all(stream: Callable[[str], Stream]) -> None:
    changing = stream(f"(x > 0.7) <> (i > {ROWS // 2})")

    courses = replayed(changing, 5, {"decay": {"trigger": "decay"}})

    scores = {name: course.total(changing.spec) for name, course in courses.items()}
    assert scores["first"] < scores["decay"] <= scores["always"] + 0.02
    assert courses["always"].retrains == 5
