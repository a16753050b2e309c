"""The factory floor: snapshot -> facts -> model -> verdict -> proof that Service B can serve it.

Each function runs in a child process of its own (see `child`), so that this module is light to import and a fit that
eats memory takes only itself down. The floor knows nothing of jobs, registries or stores: files in, values out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from msgspec import Struct

from servicectl.training import child
from servicectl.training.child import Limits
from servicectl.training.spec import (
    Decay,
    GateSpec,
    ProductFile,
    Servability,
    SnapshotFacts,
    Trained,
    TrainingSpec,
    Verdict,
)


class DescribeRequest(Struct, frozen=True, kw_only=True):
    spec: TrainingSpec
    snapshot: str
    query: str | None = None


class TrainRequest(Struct, frozen=True, kw_only=True):
    spec: TrainingSpec
    snapshot: str
    folder: str
    checkpoints: str | None = None
    libraries: tuple[str, ...] | None = None


class JudgeRequest(Struct, frozen=True, kw_only=True):
    spec: TrainingSpec
    gate: GateSpec
    snapshot: str
    challenger: ProductFile
    champion: ProductFile | None = None
    champion_seen_until: datetime | None = None
    challenger_seen_until: datetime | None = None
    allowed: tuple[str, ...] = ()


class DecayRequest(Struct, frozen=True, kw_only=True):
    spec: TrainingSpec
    snapshot: str
    model: ProductFile
    recorded: float
    judged_until: datetime
    seen_until: datetime
    alpha: float
    min_blocks: int
    allowed: tuple[str, ...] = ()


class CheckRequest(Struct, frozen=True, kw_only=True):
    spec: TrainingSpec
    snapshot: str
    model: ProductFile
    max_mb: float
    libraries: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    any_library: bool = False
    telling: tuple[int, ...] | None = None


def describe(snapshot: Path, spec: TrainingSpec, query: str | None = None) -> SnapshotFacts:
    """What a snapshot holds, if a model can be trained on it.

    Raises BadData for no rows, a missing column, a feature that no row has, text where numbers are expected, or
    labels of one class only.
    """
    request = DescribeRequest(spec=spec, snapshot=str(snapshot), query=query)
    return child.run("describe", request, SnapshotFacts, what=_what("reading", spec), limits=_limits(spec))


def train(
    spec: TrainingSpec,
    snapshot: Path,
    folder: Path,
    checkpoints: Path | None = None,
    libraries: Sequence[str] | None = None,
) -> Trained:
    """Fit on the older part of a snapshot; write `model.pkl`, `baseline.json` and `sample.parquet` into an existing folder.

    In blocks where rows are too many for memory; then `checkpoints` is a folder that outlives an interrupted try.
    The same spec, snapshot, machine and libraries give the same bytes. `libraries` are those that Service B has beyond
    scikit-learn's own; None: a trainer that says what its models need is not held against them. Raises ConfigError for
    an estimator or params that do not work, BadData for rows that cannot be trained on, NotServable for such a trainer.
    """
    request = TrainRequest(
        spec=spec,
        snapshot=str(snapshot),
        folder=str(folder),
        checkpoints=str(checkpoints) if checkpoints else None,
        libraries=None if libraries is None else tuple(libraries),
    )
    return child.run("train", request, Trained, what=_what("training", spec), limits=_limits(spec))


def judge(
    spec: TrainingSpec,
    gate: GateSpec,
    snapshot: Path,
    challenger: ProductFile,
    champion: ProductFile | None = None,
    champion_seen_until: datetime | None = None,
    challenger_seen_until: datetime | None = None,
    allowed: Sequence[str] = (),
) -> Verdict:
    """Hold challenger against champion on the snapshot's newest rows, none of which either was trained on.

    `allowed` is what a model's pickle may name beyond scikit-learn's own; a champion that names more is unusable.

    Raises IntegrityError for a model file that is not the one on record (it is not opened then), ConfigError for an
    unknown metric.
    """
    request = JudgeRequest(
        spec=spec,
        gate=gate,
        snapshot=str(snapshot),
        challenger=challenger,
        champion=champion,
        champion_seen_until=champion_seen_until,
        challenger_seen_until=challenger_seen_until,
        allowed=tuple(allowed),
    )
    return child.run("judge", request, Verdict, what=_what("judging", spec), limits=_limits(spec))


def decay(
    spec: TrainingSpec,
    snapshot: Path,
    model: ProductFile,
    *,
    recorded: float,
    judged_until: datetime,
    seen_until: datetime,
    alpha: float,
    min_blocks: int,
    allowed: Sequence[str] = (),
) -> Decay:
    """How much worse a published model is on the newest labelled rows of a snapshot than on those of its publish.

    `recorded` is its score then, on rows until `judged_until`; rows after `seen_until` are new to it. Raises
    IntegrityError for a model file that is not the one on record.
    """
    request = DecayRequest(
        spec=spec,
        snapshot=str(snapshot),
        model=model,
        recorded=recorded,
        judged_until=judged_until,
        seen_until=seen_until,
        alpha=alpha,
        min_blocks=min_blocks,
        allowed=tuple(allowed),
    )
    return child.run("decay", request, Decay, what=_what("measuring", spec), limits=_limits(spec))


def check(
    spec: TrainingSpec,
    snapshot: Path,
    model: ProductFile,
    max_mb: float,
    libraries: Sequence[str] = (),
    allowed: Sequence[str] = (),
    *,
    any_library: bool = False,
    telling: Sequence[int] | None = None,
) -> Servability:
    """Prove that Service B will get this program's numbers from a model, and give the requests that show it.

    `libraries` are those that Service B has beyond scikit-learn's own, `allowed` what else a pickle may name. With
    `any_library` one that Service B is not known to have is told in the answer only. `telling` is `Verdict.telling`,
    rows that must be among the requests; None: there was no champion. Raises NotServable, or IntegrityError.
    """
    request = CheckRequest(
        spec=spec,
        snapshot=str(snapshot),
        model=model,
        max_mb=max_mb,
        libraries=tuple(libraries),
        allowed=tuple(allowed),
        any_library=any_library,
        telling=None if telling is None else tuple(telling),
    )
    return child.run("check", request, Servability, what=_what("checking", spec), limits=_limits(spec))


def _what(verb: str, spec: TrainingSpec) -> str:
    return f"{verb} {spec.model_id}"


def _limits(spec: TrainingSpec) -> Limits:
    return Limits(threads=spec.threads, memory_mb=spec.memory_mb)
