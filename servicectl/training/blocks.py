"""The blocks of a snapshot that is too large for memory: surveyed once, then given out in any number of passes.

    outline (times, labels, categories) -> first pass (moments) -> second pass (quantiles) -> blocks, pass by pass

Within a pass, row groups come in a seeded random order; those read together are shuffled together and given out in
blocks of about 16,000 rows (fewer of wide ones), which stay in the processor's cache. What learns from them is `stream`'s, `boosting`'s and
`trainers'` affair. Rejected: shuffling the whole snapshot on disk first, which costs a second copy of it and more time
than it saves.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from servicectl.training.ahead import Ahead
from servicectl.training.checkpoint import Checkpoints
from servicectl.training.fit import libraries
from servicectl.training.labels import CodedClasses
from servicectl.training.parquet import Outline, Piece, SnapshotFile, give_back
from servicectl.training.preprocess import Preprocessing, preprocessing
from servicectl.training.pressure import Patience
from servicectl.training.spec import CurvePoint, TrainingSpec, canonical
from servicectl.training.survey import Survey, label_values, require_values

BLOCK_ROWS = 16_384
_SCHEMA = 3  # of what checkpoints hold
_POOL_BYTES = 40 << 20
_BLOCK_BYTES = 8 << 20
_FEWEST_BLOCK_ROWS = 256
_LARGEST_PIECE = 3  # pools
_AHEAD_TABLES = 1  # and one in hand, one being read
_SURVEY_ROWS = 16_000_000  # between checkpoints of the survey, which are large
_ROWS_WORTH_SAVING = 1_000_000  # a later pass over fewer is made again sooner than a survey of many columns is saved
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


@dataclass(frozen=True)
class Learnt:
    """A fitted estimator of the matrix, and what is told about how it came to be."""

    estimator: Any
    told: tuple[str, ...] = ()
    passes: int | None = None
    curve: tuple[CurvePoint, ...] = ()


def surveyed(file: SnapshotFile, kept: Checkpoints, share: float = 1.0) -> Plan:
    """Both passes over the newest share of the training rows, carried on from where a checkpoint says they stand."""
    plan: Plan | None = kept.read("plan")
    if plan is not None:
        return plan
    state: _Surveying | None = kept.read("survey")
    if state is None:
        outline = file.outline()
        outline = outline if share == 1 else file.newest(outline, share)
        state = kept.saved("survey", _Surveying(outline, Survey.empty(outline)))
    every = _pieces_of(_SURVEY_ROWS, state.outline.training)
    patience = Patience(file.spec.serving_first)
    save_passes = state.outline.rows_trained >= _ROWS_WORTH_SAVING
    while state.passed < (state.survey.passes if state.passed else 1):
        if state.pieces == 0:
            state.survey.prepare(state.passed)
        columns = state.survey.columns(file.spec, state.passed)
        remaining = state.outline.training[state.pieces :]
        with Ahead(_tables(file, remaining, columns), _AHEAD_TABLES) as tables:
            for table in tables:
                patience.wait()
                if state.passed == 0:
                    state.survey.first(table, file, state.outline)
                else:
                    state.survey.later(table, file.spec, state.passed)
                state.pieces += 1
                give_back()
                if state.pieces % every == 0:
                    state = kept.saved("survey", state)
        if state.passed > 0:
            state.survey.finish(state.passed)
        state.passed, state.pieces = state.passed + 1, 0
        if state.passed == 1 or save_passes:
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
    steps = preprocessing(survey, spec, state.outline)
    training = tuple(_cut(state.outline.training, _LARGEST_PIECE * _pool_rows(steps.width)))
    return Plan(
        dataclasses.replace(state.outline, training=training),
        steps,
        classes,
        tuple(survey.labels[value] / survey.labels.total() for value in values),
        msgspec.json.encode(document),
        parquet_bytes(pa.concat_tables(survey.sample)),
    )


def _cut(pieces: Sequence[Piece], most: int) -> Iterator[Piece]:
    """No piece much larger than what is read together: a few columns with many categories are wide once encoded.

    Each part of a row group reads that group again, which is little beside what its width costs.
    """
    for piece in pieces:
        parts = math.ceil(len(piece) / most)
        cuts = [piece.start + len(piece) * part // parts for part in range(parts + 1)]
        for start, stop in itertools.pairwise(cuts):
            yield dataclasses.replace(piece, start=start, stop=stop)


def parquet_bytes(table: pa.Table) -> bytes:
    """A small table as the bytes of a Parquet file."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    return bytes(buffer.getvalue())


def passes_over(rows: int, spec: TrainingSpec) -> int:
    """Configured, else 3, and more where rows are few: stochastic gradients settle after some 10^6 rows."""
    return spec.passes or min(50, max(3, math.ceil(_FEWEST_ROWS_LEARNT / rows)))


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
    shuffled: list[tuple[NDArray[np.float32], NDArray[Any]]] = []
    for piece in pool:
        x = space[: len(piece)]
        y = features_and_labels(file, plan, piece, x)
        order = chance.permutation(len(piece))
        shuffled.append((x.take(order, axis=0), y[order]))
    count = math.ceil(sum(map(len, pool)) / block_rows(plan.steps.width))
    cuts = [np.arange(count + 1) * len(piece) // count for piece in pool]
    for number in range(count):
        shares = [slice(cut[number], cut[number + 1]) for cut in cuts]
        parts = [(x[share], y[share]) for (x, y), share in zip(shuffled, shares, strict=True)]
        yield Block(
            np.concatenate([x for x, _ in parts]),
            np.concatenate([y for _, y in parts]),
            ends_pool=number == count - 1,
        )


def features_and_labels(file: SnapshotFile, plan: Plan, piece: Piece, into: NDArray[np.float32]) -> NDArray[Any]:
    """Write the preprocessed features of a piece into an array (rows, width); returns codes or numbers."""
    table = file.table(piece, [*file.spec.features, file.spec.label])
    plan.steps.matrix(table, plan.outline, into)
    labels = label_values(table, file)
    return labels if plan.classes is None else plan.classes.encode(labels)


def pools_in_pass(plan: Plan, spec: TrainingSpec, number: int) -> int:
    return sum(1 for _ in _pools(plan, spec, number))


def _pools(plan: Plan, spec: TrainingSpec, number: int) -> Iterator[list[Piece]]:
    """Row groups read together: in random order, so that a pool mixes times that lie apart."""
    pieces = plan.outline.training
    most = _pool_rows(plan.steps.width)
    pool: list[Piece] = []
    for index in np.random.default_rng([spec.seed, number]).permutation(len(pieces)):
        if pool and sum(map(len, pool)) + len(pieces[index]) > most:
            yield pool
            pool = []
        pool.append(pieces[index])
    yield pool


def block_rows(width: int) -> int:
    """How many rows one block has: those of few columns fit the processor's cache, those of many fit memory."""
    return min(BLOCK_ROWS, max(_FEWEST_BLOCK_ROWS, _BLOCK_BYTES // (4 * width)))


def _pool_rows(width: int) -> int:
    return max(block_rows(width), _POOL_BYTES // (4 * width))


def pools_of(rows: int, plan: Plan) -> int:
    largest = max(map(len, plan.outline.training))
    return max(1, rows // max(_pool_rows(plan.steps.width), largest))


def _pieces_of(rows: int, pieces: Sequence[Piece]) -> int:
    return max(1, rows // max(map(len, pieces)))


def identity(file: SnapshotFile, spec: TrainingSpec) -> str:
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
