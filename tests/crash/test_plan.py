"""Boundaries are read off a recording, and a sample is a fair one."""

from __future__ import annotations

from collections import Counter

import pytest

from servicectl.errors import UsageError
from servicectl.selftest.plan import AtInstant, AtPoint, Known, boundaries, kill_at, planned, was_reached

TRACE = [
    "7 publish/claimed", "7 artifacts/local/after-link", "7 artifacts/local/after-link", "9 training/fit/1",
    "11 training/fit/1", "7 artifacts/local/after-link",
]  # fmt: skip


def test_each_passing_of_a_point_by_one_process_is_a_boundary_of_its_own() -> None:
    assert [str(one) for one in boundaries(TRACE)] == [
        "publish/claimed",
        "artifacts/local/after-link",
        "artifacts/local/after-link@2",
        "training/fit/1",
        "artifacts/local/after-link@3",
    ]


def test_a_boundary_was_reached_if_one_process_passed_it_that_often() -> None:
    assert was_reached(AtPoint("artifacts/local/after-link@3"), TRACE)
    assert not was_reached(AtPoint("artifacts/local/after-link@3"), TRACE[:3])
    assert not was_reached(AtPoint("training/fit/1@2"), TRACE)  # twice, by two processes


@pytest.mark.parametrize(
    ("point", "moment"),
    [
        ("publish/submitted", "submitted"),
        ("publish/claimed", "claimed"),
        ("publish/undo swap/before", "before"),
        ("publish/swap/effect", "effect"),
        ("publish/swap/recorded", "recorded"),
        ("publish/complete/before", "complete/before"),
        ("publish/complete/recorded", "complete/recorded"),
        ("artifacts/local/after-link@2", "inside a step"),
        ("training/fit/before", "inside a step"),
    ],
)
def test_the_kind_of_a_boundary_is_told_by_its_name(point: str, moment: str) -> None:
    assert AtPoint(point).moment == moment


def test_what_a_report_names_can_be_typed_again() -> None:
    for kill in (AtPoint("artifacts/local/after-link@2"), AtInstant(184, False), AtInstant(20, True)):
        assert kill_at(str(kill)) == kill
    with pytest.raises(UsageError):
        kill_at("sometime")


def known() -> dict[str, Known]:
    def points(kind: str) -> tuple[AtPoint, ...]:
        steps = [f"{kind}/{step}/{moment}" for step in "abcd" for moment in ("before", "effect", "recorded")]
        ends = [f"{kind}/{moment}" for moment in ("submitted", "claimed", "complete/before", "complete/recorded")]
        return tuple(AtPoint(name) for name in [*steps, *ends, "artifacts/local/after-link"])

    return {
        "slow": Known(points("slow"), 5.0),
        "quick": Known(points("quick"), 0.5),
        "quicker": Known(points("quicker"), 0.4),
        "at random only": Known((), 9.0),
    }


def test_enough_kills_are_every_boundary_once_and_the_rest_at_random() -> None:
    plan = planned(known(), 100, seed=1)
    assert len(plan) == 100
    at_points = [one for one in plan if isinstance(one[1], AtPoint)]
    assert sorted(at_points, key=str) == sorted(
        ((name, point) for name, one in known().items() for point in one.boundaries), key=str
    )
    instants = [kill for _, kill in plan if isinstance(kill, AtInstant)]
    assert {kill.whole_group for kill in instants} == {True, False}
    assert {name for name, kill in plan if isinstance(kill, AtInstant)} == set(known())


@pytest.mark.parametrize("seed", range(10))
def test_a_sample_holds_every_action_and_every_kind_of_boundary_and_spares_what_is_slow(seed: int) -> None:
    plan = planned(known(), 24, seed)
    assert len(plan) == len(set(plan)) == 24
    at_points = [(name, kill) for name, kill in plan if isinstance(kill, AtPoint)]
    kills = Counter(name for name, _ in at_points)
    assert set(kills) == {"slow", "quick", "quicker"}
    assert kills["slow"] < kills["quick"]
    assert {kill.moment for _, kill in at_points} == {
        point.moment for one in known().values() for point in one.boundaries
    }
    assert {name for name, kill in plan if isinstance(kill, AtInstant)} == set(known())


def test_a_seed_gives_the_same_plan_again_and_another_one_another() -> None:
    assert planned(known(), 24, seed=3) == planned(known(), 24, seed=3) != planned(known(), 24, seed=4)


def test_of_few_kills_each_action_gets_one_before_any_is_at_random() -> None:
    many = {f"{name} {number}": one for number in (1, 2) for name, one in known().items() if one.boundaries}
    plan = planned(many, len(many), seed=0)
    assert {name for name, _ in plan} == set(many)
    assert all(isinstance(kill, AtPoint) for _, kill in plan)
