"""The newest rows of a snapshot that is too large for memory: times, entities and labels whole, features in blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from servicectl.training.frame import Frames, Rows
from servicectl.training.parquet import Outline, Piece, SnapshotFile, times
from servicectl.training.spec import TrainingSpec
from servicectl.training.survey import feature_values, label_values

_BLOCK_ROWS = 65_536
_BLOCK_BYTES = 64 << 20  # of the encoded matrix, which the model makes of each frame


@dataclass(frozen=True)
class _Blocks(Frames):
    """The features of some pieces, a frame at a time; of each piece the rows that `keep` marks."""

    file: SnapshotFile
    outline: Outline
    pieces: Sequence[Piece]
    keep: NDArray[np.bool_]

    def __iter__(self) -> Iterator[pd.DataFrame]:
        start = 0
        rows = min(_BLOCK_ROWS, max(1, _BLOCK_BYTES // (8 * self.outline.width)))
        for piece in self.pieces:
            keep = self.keep[start : start + len(piece)]
            start += len(piece)
            if not keep.any():
                continue
            table = self.file.table(piece, self.file.spec.features)
            if not keep.all():
                table = table.filter(pa.array(keep))
            for first in range(0, len(table), rows):
                yield self._frame(table.slice(first, rows))

    def _frame(self, table: pa.Table) -> pd.DataFrame:
        empty = np.empty(0)
        features = {name: feature_values(table, name, self.outline) for name in self.file.spec.features}
        return Rows(np.empty(len(table), "datetime64[us]"), np.empty(0, np.int64), empty, features).frame()


@dataclass(frozen=True)
class BlockRows(Rows):
    """Rows whose features stay on disk."""

    blocks: _Blocks

    def part(self, chosen: slice | NDArray[Any]) -> BlockRows:
        keep = self.blocks.keep.copy()
        inside = np.zeros(len(self), dtype=np.bool_)
        inside[chosen] = True
        keep[keep] = inside
        blocks = _Blocks(self.blocks.file, self.blocks.outline, self.blocks.pieces, keep)
        return BlockRows(self.times[chosen], self.entities[chosen], self.labels[chosen], {}, blocks)

    def frame(self) -> Any:
        return self.blocks


@dataclass(frozen=True)
class Known:
    """The labels of the training rows, summed up: rows per class, or their mean."""

    classes: Counter[Any]
    mean: float


@dataclass(frozen=True)
class BlockSplit:
    """As `frame.Split`, of a snapshot that is read in blocks."""

    training: Known
    heldout: BlockRows


def split_in_blocks(path: Path, spec: TrainingSpec) -> BlockSplit:
    """The split of a snapshot; raises BadData as `frame.split` does."""
    file = SnapshotFile(path, spec)
    outline = file.outline()
    return BlockSplit(_known(file, outline), _heldout(file, outline))


def heldout_in_blocks(path: Path, spec: TrainingSpec) -> BlockRows:
    file = SnapshotFile(path, spec)
    return _heldout(file, file.outline())


def _heldout(file: SnapshotFile, outline: Outline) -> BlockRows:
    spec = file.spec
    moments, labels, entities = [], [], []
    for piece in outline.heldout:
        table = file.table(piece, [spec.time_column, spec.entity_column, spec.label])
        moments.append(times(table.column(spec.time_column)))
        entities.append(hashed(table.column(spec.entity_column)))
        labels.append(label_values(table, file))
    keep = np.ones(outline.rows_heldout, dtype=np.bool_)
    return BlockRows(
        np.concatenate(moments),
        np.concatenate(entities),
        np.concatenate(labels),
        {},
        _Blocks(file, outline, outline.heldout, keep),
    )


def hashed(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number for each entity, alike in every block; two entities share one only by a rare accident."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    names = np.array([*encoded.dictionary.to_pylist(), ""], dtype=object)
    hashes = pd.util.hash_array(names, categorize=False).astype(np.int64)
    codes = np.asarray(encoded.indices.fill_null(len(names) - 1).to_numpy(zero_copy_only=False))
    return np.asarray(hashes[codes], dtype=np.int64)


def _known(file: SnapshotFile, outline: Outline) -> Known:
    spec = file.spec
    classes: Counter[Any] = Counter()
    total = 0.0
    for piece in outline.training:
        labels = label_values(file.table(piece, [spec.label]), file)
        if spec.task == "regression":
            total += float(labels.sum())
        else:
            found, counts = np.unique(labels, return_counts=True)
            classes.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
    return Known(classes, total / outline.rows_trained)
