"""Service C's figures beside the builtin ones for the same feature: how far two implementations agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from servicectl.drift.comparison import Evidence
from servicectl.drift.policy import Measured, Verdict

CLOSE = 1e-6
"""Figures closer than this are the same one."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """One feature. The psi are over the same ten equal-width bins; None where that side has no figure.

    `same_figures` is False also where only one side measured. `service_c`, `builtin`: the verdicts.
    """

    feature: str
    service_c_psi: float | None
    builtin_psi: float | None
    service_c_ks: float | None
    builtin_ks: float | None
    service_c: str
    builtin: str
    same_figures: bool


def agreements(
    answers: Mapping[str, Mapping[str, Measured]], evidence: Mapping[str, Evidence], judged: Mapping[str, Verdict]
) -> tuple[Agreement, ...]:
    """Given Service C's answers by model and feature, and the builtin evidence and verdicts by feature, one by one.

    Service C says the same about a feature for every model; where it does not, its first answer counts.
    """
    answered: dict[str, Measured] = {}
    for answer in answers.values():
        for feature, measured in answer.items():
            answered.setdefault(feature, measured)
    return tuple(
        _agreement(feature, answered.get(feature), one, judged.get(feature)) for feature, one in evidence.items()
    )


def _agreement(feature: str, theirs: Measured | None, ours: Evidence, verdict: Verdict | None) -> Agreement:
    pairs = [(theirs.psi, ours.estate_psi), (theirs.ks_stat, ours.ks)] if theirs else [(None, 0.0)]
    return Agreement(
        feature=feature,
        service_c_psi=theirs.psi if theirs else None,
        builtin_psi=ours.estate_psi,
        service_c_ks=theirs.ks_stat if theirs else None,
        builtin_ks=ours.ks,
        service_c=theirs.status if theirs else Verdict.NOT_MEASURED.value,
        builtin=(verdict or Verdict.NOT_MEASURED).value,
        same_figures=all(a is not None and b is not None and abs(a - b) <= CLOSE for a, b in pairs),
    )
