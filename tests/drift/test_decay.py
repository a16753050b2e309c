from __future__ import annotations

from dataclasses import replace

import pytest

from servicectl.drift.decay import Lost, judge
from servicectl.drift.trigger import DECAY, Pull, Trigger, pull
from servicectl.drift.values import Verdict

LOST = Lost("f1_macro", before=0.8, now=0.7, difference=-0.1, high=-0.06, blocks=60, rows=4000)


def test_a_large_loss_that_chance_would_hardly_bring_is_critical() -> None:
    judged = judge(LOST, 0.05)

    assert judged.verdict is Verdict.CRITICAL
    assert judged.reason.startswith("f1_macro 0.7000 on the 4,000 newest labelled rows, 0.8000 when it was published")
    assert judged.own


@pytest.mark.parametrize(
    ("lost", "verdict"),
    [
        (replace(LOST, high=0.001), Verdict.PASS),  # it may be chance
        (replace(LOST, difference=0.1, high=0.2), Verdict.PASS),  # better than before
        (replace(LOST, difference=-0.03, high=-0.001), Verdict.WARNING),  # 4 % of 0.8 is 0.032
        (replace(LOST, difference=-0.01, high=-0.001), Verdict.PASS),
        # An error that rises: differences are in "better", so their sign does not depend on the metric.
        (Lost("rmse", before=10.0, now=12.0, difference=-2.0, high=-1.0, blocks=60, rows=4000), Verdict.CRITICAL),
        # No part of a score of nothing: any sure loss counts.
        (Lost("r2", before=0.0, now=-0.1, difference=-0.1, high=-0.05, blocks=60, rows=4000), Verdict.CRITICAL),
    ],
)
def test_a_loss_counts_if_it_is_sure_and_large(lost: Lost, verdict: Verdict) -> None:
    assert judge(lost, 0.05).verdict is verdict


@pytest.mark.parametrize(
    ("trigger", "drifted", "decay", "expected"),
    [
        ("drift", ("age",), None, Pull(("age",))),
        ("drift", ("age",), Verdict.PASS, Pull(("age",))),
        ("drift", (), Verdict.CRITICAL, Pull(())),
        ("decay", (), Verdict.CRITICAL, Pull((DECAY,))),
        ("decay", (), Verdict.WARNING, Pull(())),
        ("decay", (), Verdict.NOT_MEASURED, Pull(())),
        ("decay", ("age",), Verdict.PASS, Pull((), "drifted in age, but it has not lost its score")),
        (
            "decay",
            ("age", "city"),
            Verdict.NOT_MEASURED,
            Pull((), "drifted in age, city, but whether it has lost its score could not be measured"),
        ),
        ("drift-and-decay", ("age",), Verdict.CRITICAL, Pull(("age", DECAY))),
        ("drift-and-decay", ("age",), Verdict.WARNING, Pull((), "drifted in age, but it has not lost its score")),
        ("drift-and-decay", (), Verdict.CRITICAL, Pull((), "it has lost its score, but nothing has drifted")),
        ("drift-and-decay", (), Verdict.PASS, Pull(())),
    ],
)
def test_each_trigger_pulls_on_what_it_names_and_says_what_was_not_enough(
    trigger: Trigger, drifted: tuple[str, ...], decay: Verdict | None, expected: Pull
) -> None:
    assert pull(trigger, drifted, decay) == expected
