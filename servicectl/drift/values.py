"""What the policy is given and what it says: frozen values, no judgement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal


class Verdict(StrEnum):
    """What is known about one feature of one production model. The values are stored and printed."""

    PASS = "PASS"  # noqa: S105 -- the word Service C uses, not a password
    WARNING = "WARNING"
    CRITICAL = "CRITICAL"
    NOT_MEASURED = "NOT_MEASURED"
    QUARANTINE = "QUARANTINE"


@dataclass(frozen=True, slots=True)
class Asked:
    """One production model and the features it expects.

    `learnt_until` is the newest row of the snapshot that the production model was trained or judged on; None for
    a model whose history is not known.
    """

    model_id: str
    version: str
    features: tuple[str, ...]
    learnt_until: datetime | None


@dataclass(frozen=True, slots=True)
class Judged:
    """What the builtin statistics make of their own figures.

    `strength` is the effect in multiples of what is worth a WARNING, 0 if it may be chance. NOT_MEASURED and
    QUARANTINE are verdicts of theirs too. `own`: the reference was what this very model has learnt from.
    """

    verdict: Verdict
    reason: str
    strength: float = 0.0
    own: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """One feature as the analyst answered it.

    `status` is Service C's own word, unchecked, "" if it was not asked. A figure may be None only with `judged`:
    then that is the judgement, else the policy weighs the word by the figures.
    """

    psi: float | None
    ks_stat: float | None
    ks_p_value: float | None
    kl_divergence: float | None
    status: str
    judged: Judged | None = None


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """One feature as counted in the feature store.

    `without_time` of the `rows` have no usable time (NULL or year 1); `newest` and `oldest` are over those that have
    one; `oldest` is None also where nobody asked.
    """

    rows: int
    without_time: int
    newest: datetime | None
    oldest: datetime | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """`min_rows`: rows with a time below which Service C's CRITICAL is noise more often than not, when nothing
    drifted. `effect_floor_psi`: a CRITICAL counts only above this PSI; `psi_cut_offs` raise it for some features.
    `stale_after`: newest rows older than this are broken data; None: never. `watch_silence`: where nothing has come for
    long, measured by the rows' own history, a PASS is NOT_MEASURED. `clear_ratio`: what was told stays at WARNING until
    the effect is below this part of what is worth one. `looks_drifted`: so many looks in a row, each with a newest row
    of its own, must say CRITICAL."""

    min_rows: int = 20_000
    effect_floor_psi: float = 0.25
    psi_cut_offs: Mapping[str, float] = field(default_factory=dict)
    stale_after: timedelta | None = None
    watch_silence: bool = False
    clear_ratio: float = 0.8
    looks_drifted: int = 1
    analyst: str = "Service C"


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict on one feature of one model, with its evidence.

    `status` is the analyst's own word, or "" if there is none. The four figures are None when they were not
    answered or not finite. `newer`: the feature has rows newer than those the model learnt from (also true when
    that cannot be told). `own`: compared with what this very model learnt from, so that drift found for another model
    does not concern it. `newest`: of its rows. `critical`: this look alone says CRITICAL of the feature, whatever was
    made of it. `feature` is "" in the one decision about a model that has no features.
    """

    model_id: str
    version: str
    feature: str
    verdict: Verdict
    status: str
    psi: float | None
    ks_stat: float | None
    ks_p_value: float | None
    kl_divergence: float | None
    rows: int
    reason: str
    newer: bool
    own: bool = False
    newest: datetime | None = None
    critical: bool = False

    @property
    def concerned(self) -> bool:
        """Whether drift of the feature, wherever it was found, has something new for this model, and something sound."""
        if self.verdict is Verdict.QUARANTINE:
            return False
        return self.newer and (self.verdict is Verdict.CRITICAL or not self.own)


@dataclass(frozen=True, slots=True)
class Findings:
    """One look. `drifted`: features measured CRITICAL on enough sound rows, whichever model the answer named.
    `unexpected`: what was answered and never asked, as `model` or `model/feature`."""

    decisions: tuple[Decision, ...]
    drifted: tuple[str, ...]
    unexpected: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """A look in one word and its counts. `not_measured` counts NOT_MEASURED and QUARANTINE, whatever the outcome."""

    outcome: Literal["drift", "not-measured", "clear"]
    counts: Mapping[Verdict, int]
    not_measured: int
