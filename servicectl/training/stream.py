"""Training on more rows than fit in memory: any scikit-learn estimator with `partial_fit`, several passes over blocks.

    outline (times, labels, text) -> first pass (moments, categories) -> second pass (quantiles) -> fit, pass by pass

Within a pass, row groups come in a seeded random order; those read together are shuffled together and given to the
estimator in blocks of about 16,000 rows, which stay in the processor's cache. One thread reads, imputes, scales and
shuffles ahead of the fit. Progress is saved every few million rows; see `checkpoint` for why every run reads it back.
Rejected: shuffling the whole snapshot on disk first, which costs a second copy of it and more time than it saves.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from servicectl import crash
from servicectl.errors import ConfigError
from servicectl.training.ahead import Ahead
from servicectl.training.checkpoint import Checkpoints
from servicectl.training.fit import (
    LABELS_ATTRIBUTE,
    estimator_of,
    explained,
    libraries,
    written,
)
from servicectl.training.frame import moment
from servicectl.training.labels import CodedClasses
from servicectl.training.parquet import Outline, Piece, SnapshotFile, give_back
from servicectl.training.pickling import dumps
from servicectl.training.preprocess import Preprocessing, preprocessing
from servicectl.training.pressure import Patience
from servicectl.training.spec import CurvePoint, Trained, TrainingSpec, canonical
from servicectl.training.survey import Survey, label_values, require_values

if TYPE_CHECKING:
    from servicectl.training.floor import TrainRequest

BLOCK_ROWS = 16_384
_SCHEMA = 1  # of what checkpoints hold
_POOL_BYTES = 40 << 20
_AHEAD_BLOCKS = 6
_AHEAD_TABLES = 1  # and one in hand, one being read
_SURVEY_ROWS = 16_000_000  # between checkpoints of the survey, which are large
_FIT_ROWS = 2_000_000  # between checkpoints of the fit
_CURVE_POINTS = 200
_LEAST_BETWEEN_SCORES = 16  # blocks
_FEWEST_ROWS_LEARNT = 2_000_000


@dataclass(frozen=True)
class Block:
    """Rows ready to be learnt: `x` (rows, width) float32, `y` codes or numbers. `ends_pool`: the last of those read together."""

    x: NDArray[np.float32]
    y: NDArray[Any]
    ends_pool: bool


@dataclass
class _Surveying:
    outline: Outline
    survey: Survey
    passed: int = 0  # passes done
    pieces: int = 0  # of the pass under way


@dataclass(frozen=True)
class Plan:
    """What the survey found, as the fit needs it."""

    outline: Outline
    steps: Preprocessing
    classes: CodedClasses | None
    shares: tuple[float, ...]  # of each class
    baseline: bytes
    sample: bytes


@dataclass
class Fitting:
    """Where the fit stands."""

    estimator: Any
    passed: int = 0
    pools: int = 0
    blocks: int = 0
    rows: int = 0
    curve: list[CurvePoint] = field(default_factory=list)
    told: tuple[str, ...] = ()


def train_in_blocks(request: TrainRequest, estimate_mb: int) -> Trained:
    """The child's side of `floor.train` for training = "streaming"."""
    started = time.monotonic()
    spec, folder, snapshot = request.spec, Path(request.folder), Path(request.snapshot)
    estimator_with_partial_fit(spec)
    file = SnapshotFile(snapshot, spec)
    kept = Checkpoints(Path(request.checkpoints or folder / "checkpoints"), _identity(file, spec))
    plan = surveyed(file, kept)
    fitting = fitted(file, plan, kept)
    model = dumps(_published(plan, fitting.estimator, spec))
    crash.point("training/model/before")
    outline, classes = plan.outline, plan.classes
    return Trained(
        model=written(folder / "model.pkl", model),
        baseline=written(folder / "baseline.json", plan.baseline),
        sample=written(folder / "sample.parquet", plan.sample),
        rows_trained=outline.rows_trained,
        trained_from=moment(outline.trained_from),
        trained_until=moment(outline.trained_until),
        heldout_from=moment(outline.heldout_from),
        seconds=round(time.monotonic() - started, 3),
        libraries=libraries(spec),
        estimator=spec.estimator_path,
        label_codes=None if classes is None else classes.names,
        warnings=fitting.told,
        training="streaming",
        estimate_mb=estimate_mb,
        passes=fitting.passed,
        curve=tuple(fitting.curve),
    )


def estimator_with_partial_fit(spec: TrainingSpec) -> Any:
    """Raises ConfigError, naming what could be used instead, for an estimator that only learns all rows at once."""
    estimator = estimator_of(spec)
    if not hasattr(estimator, "partial_fit"):
        raise ConfigError(
            f"models.{spec.model_id}: {spec.estimator_path} has no partial_fit, so it cannot be trained in blocks",
            cure=f"set models.{spec.model_id}.estimator to {alternatives(spec)}; or use fewer rows with training.max_rows",
        )
    return estimator


def alternatives(spec: TrainingSpec) -> str:
    """Estimators that learn in blocks, for messages."""
    kind = "Classifier" if spec.task == "classification" else "Regressor"
    return f"sklearn.linear_model.SGD{kind} or sklearn.neural_network.MLP{kind}"


def surveyed(file: SnapshotFile, kept: Checkpoints) -> Plan:
    """Both passes over the training rows, carried on from where a checkpoint says they stand."""
    plan: Plan | None = kept.read("plan")
    if plan is not None:
        return plan
    state: _Surveying | None = kept.read("survey")
    if state is None:
        outline = file.outline()
        state = kept.saved("survey", _Surveying(outline, Survey.empty(outline)))
    every = _pieces_of(_SURVEY_ROWS, state.outline.training)
    patience = Patience(file.spec.serving_first)
    while state.passed < 2:
        columns = state.survey.columns(file.spec, state.passed)
        remaining = state.outline.training[state.pieces :] if columns else ()
        with Ahead(_tables(file, remaining, columns), _AHEAD_TABLES) as tables:
            for table in tables:
                patience.wait()
                if state.passed == 0:
                    state.survey.first(table, file, state.outline)
                else:
                    state.survey.second(table, file.spec)
                state.pieces += 1
                give_back()
                if state.pieces % every == 0:
                    state = kept.saved("survey", state)
        if state.passed == 0:
            state.survey.prepare()
        state.passed, state.pieces = state.passed + 1, 0
        state = kept.saved("survey", state)
    saved: Plan = kept.saved("plan", _planned(state, file.spec))
    return saved


def _tables(file: SnapshotFile, pieces: Sequence[Piece], columns: Sequence[str]) -> Iterator[pa.Table]:
    mine = SnapshotFile(file.path, file.spec)  # of this thread
    for piece in pieces:
        yield mine.table(piece, columns)


def _planned(state: _Surveying, spec: TrainingSpec) -> Plan:
    survey = state.survey
    require_values(survey, spec)
    classes = survey.classes(spec)
    document = survey.baseline(spec, state.outline, None if classes is None else classes.names)
    values = () if classes is None else classes.values
    return Plan(
        state.outline,
        preprocessing(survey, spec, state.outline),
        classes,
        tuple(survey.labels[value] / survey.labels.total() for value in values),
        msgspec.json.encode(document),
        parquet_bytes(pa.concat_tables(survey.sample)),
    )


def parquet_bytes(table: pa.Table) -> bytes:
    """A small table as the bytes of a Parquet file."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    return bytes(buffer.getvalue())


def fitted(file: SnapshotFile, plan: Plan, kept: Checkpoints) -> Fitting:
    spec = file.spec
    state: Fitting | None = kept.read("fit")
    if state is None:
        state = kept.saved("fit", Fitting(_weighted(estimator_with_partial_fit(spec), plan)))
    passes = passes_over(plan.outline.rows_trained, spec)
    every_blocks = max(
        _LEAST_BETWEEN_SCORES, passes * math.ceil(plan.outline.rows_trained / BLOCK_ROWS) // _CURVE_POINTS
    )
    keep_every = _pools_of(_FIT_ROWS, plan)
    patience = Patience(spec.serving_first)
    saves = 0
    with warnings.catch_warnings(record=True) as caught, explained(spec, plan.outline.rows_trained):
        warnings.simplefilter("always")
        while state.passed < passes:
            with Ahead(blocks_of_pass(file.path, spec, plan, state.passed, state.pools), _AHEAD_BLOCKS) as blocks:
                for block in blocks:
                    patience.wait()
                    _learn(state, block, plan, scored=state.blocks % every_blocks == 0 and state.blocks > 0)
                    if caught:
                        told = [str(warning.message).split("\n")[0] for warning in caught]
                        state.told = tuple(dict.fromkeys([*state.told, *told]))
                        caught.clear()
                    if block.ends_pool:
                        state.pools += 1
                        give_back()
                        if state.pools % keep_every == 0:
                            state = kept.saved("fit", state)
                            saves += 1
                            crash.point(f"training/fit/{saves}")
            state.passed, state.pools = state.passed + 1, 0
            state = kept.saved("fit", state)
            saves += 1
            crash.point(f"training/fit/{saves}")
    return state


def passes_over(rows: int, spec: TrainingSpec) -> int:
    """Configured, else 3, and more where rows are few: stochastic gradients settle after some 10^6 rows."""
    return spec.passes or min(50, max(3, math.ceil(_FEWEST_ROWS_LEARNT / rows)))


def _learn(state: Fitting, block: Block, plan: Plan, *, scored: bool) -> None:
    if scored:
        # On rows that are about to be learnt: in the first pass, rows never seen.
        score = round(float(state.estimator.score(block.x, block.y)), 6)
        state.curve.append(CurvePoint(state.passed + 1, state.rows, score if math.isfinite(score) else None))
    if plan.classes is None:
        state.estimator.partial_fit(block.x, block.y)
    else:
        state.estimator.partial_fit(block.x, block.y, classes=plan.classes.codes)
    state.blocks += 1
    state.rows += len(block.y)


def blocks_of_pass(path: Path, spec: TrainingSpec, plan: Plan, number: int, skipped: int = 0) -> Iterator[Block]:
    """The blocks of one pass, in an order that the seed and the pass decide; without its first `skipped` pools."""
    file = SnapshotFile(path, spec)  # of this thread
    largest = max(sum(map(len, pool)) for pool in _pools(plan, spec, number))
    space = np.empty(
        (largest, plan.steps.width), dtype=np.float32
    )  # fresh memory for each pool would cost as much again
    for position, pool in enumerate(_pools(plan, spec, number)):
        if position >= skipped:
            yield from _blocks_of_pool(file, plan, pool, space, np.random.default_rng([spec.seed, number, position]))


def _blocks_of_pool(
    file: SnapshotFile, plan: Plan, pool: Sequence[Piece], space: NDArray[np.float32], chance: np.random.Generator
) -> Iterator[Block]:
    """Each piece is shuffled by itself, where it still fits the cache; each block then takes a share of every piece."""
    spec = file.spec
    shuffled: list[tuple[NDArray[np.float32], NDArray[Any]]] = []
    for piece in pool:
        table = file.table(piece, [*spec.features, spec.label])
        x = space[: len(piece)]
        plan.steps.matrix(table, plan.outline, x)
        labels = label_values(table, file)
        y = labels if plan.classes is None else plan.classes.encode(labels)
        order = chance.permutation(len(piece))
        shuffled.append((x.take(order, axis=0), y[order]))
        del table
    count = math.ceil(sum(map(len, pool)) / BLOCK_ROWS)
    cuts = [np.arange(count + 1) * len(piece) // count for piece in pool]
    for number in range(count):
        shares = [slice(cut[number], cut[number + 1]) for cut in cuts]
        parts = [(x[share], y[share]) for (x, y), share in zip(shuffled, shares, strict=True)]
        yield Block(
            np.concatenate([x for x, _ in parts]),
            np.concatenate([y for _, y in parts]),
            ends_pool=number == count - 1,
        )


def _pools(plan: Plan, spec: TrainingSpec, number: int) -> Iterator[list[Piece]]:
    """Row groups read together: in random order, so that a pool mixes times that lie apart."""
    pieces = plan.outline.training
    most = _pool_rows(plan)
    pool: list[Piece] = []
    for index in np.random.default_rng([spec.seed, number]).permutation(len(pieces)):
        if pool and sum(map(len, pool)) + len(pieces[index]) > most:
            yield pool
            pool = []
        pool.append(pieces[index])
    yield pool


def _pool_rows(plan: Plan) -> int:
    return max(BLOCK_ROWS, _POOL_BYTES // (4 * plan.steps.width))


def _pools_of(rows: int, plan: Plan) -> int:
    largest = max(map(len, plan.outline.training))
    return max(1, rows // max(_pool_rows(plan), largest))


def _pieces_of(rows: int, pieces: Sequence[Piece]) -> int:
    return max(1, rows // max(map(len, pieces)))


def _weighted(estimator: Any, plan: Plan) -> Any:
    """partial_fit refuses class_weight = "balanced", because it cannot know the shares; the survey does."""
    if plan.classes is not None and getattr(estimator, "class_weight", None) == "balanced":
        weights = {
            int(code): 1 / (len(plan.shares) * share)
            for code, share in zip(plan.classes.codes, plan.shares, strict=True)
        }
        estimator.set_params(class_weight=weights)
    return estimator


def _published(plan: Plan, estimator: Any, spec: TrainingSpec) -> Any:
    from sklearn.pipeline import Pipeline

    pipeline = Pipeline([("columns", plan.steps.fitted(spec, plan.outline)), ("estimator", estimator)])
    if plan.classes is not None and plan.classes.originals is not None:
        setattr(pipeline, LABELS_ATTRIBUTE, plan.classes.originals)
    return pipeline


def _identity(file: SnapshotFile, spec: TrainingSpec) -> str:
    """What a checkpoint belongs to: this spec, this snapshot (its size and its footer), these libraries."""
    import hashlib

    with file.path.open("rb") as content:
        size = content.seek(0, 2)
        content.seek(max(0, size - 65_536))
        footer = hashlib.sha256(content.read()).hexdigest()
    # What may change between two tries without changing the model.
    told = msgspec.structs.replace(spec, memory_mb=None, serving_first=False)
    return canonical(
        {"schema": _SCHEMA, "spec": told, "size": size, "footer": footer, "with": libraries(spec)}
    ).decode()
