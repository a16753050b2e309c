"""What retrains a model: drifted rows, a champion that has lost its score, or only both together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from servicectl.drift.values import Verdict

Trigger = Literal["drift", "decay", "drift-and-decay"]

DECAY, LABEL, PREDICTION = "(decay)", "(label)", "(prediction)"
"""Where evidence stands that is about no feature. In parentheses, so that no feature is meant."""


@dataclass(frozen=True, slots=True)
class Pull:
    """`causes` are what a retrain is wished for; empty: nothing. `held`: why what was found is not enough, or ""."""

    causes: tuple[str, ...]
    held: str = ""


def pull(trigger: Trigger, drifted: Sequence[str], decay: Verdict | None) -> Pull:
    """Given a model's drifted features (and what else counts as such) and the verdict on its decay, None if nobody
    looked."""
    decayed = decay is Verdict.CRITICAL
    if trigger == "drift":
        return Pull(tuple(drifted))
    if trigger == "decay":
        if decayed:
            return Pull((DECAY,))
        return Pull((), f"drifted in {', '.join(drifted)}, but {_not_decayed(decay)}" if drifted else "")
    if drifted and decayed:
        return Pull((*drifted, DECAY))
    if drifted:
        return Pull((), f"drifted in {', '.join(drifted)}, but {_not_decayed(decay)}")
    return Pull((), "it has lost its score, but nothing has drifted" if decayed else "")


def _not_decayed(decay: Verdict | None) -> str:
    if decay in (Verdict.PASS, Verdict.WARNING):
        return "it has not lost its score"
    return "whether it has lost its score could not be measured"
