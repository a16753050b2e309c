"""A snapshot read by row groups: its outline, and any of its rows without holding the others.

A snapshot is ordered by time (its query says so); that is checked here, because everything that follows cuts by time.
Rows without a time or a label are left out as `frame.read` leaves them out, and values that are no number are NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from servicectl.errors import BadData
from servicectl.training.frame import MOST_CATEGORIES, as_served, first_heldout, moment, too_many_categories
from servicectl.training.spec import TrainingSpec

Kind = Literal["numeric", "coded", "text"]


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of one row group, counted among its usable rows; `whole`: every row of it is usable."""

    group: int
    start: int
    stop: int
    whole: bool

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Outline:
    """What a snapshot holds, without its values. `kinds` says for each feature how it is learnt, `width` how many
    columns they are once encoded."""

    kinds: dict[str, Kind]
    training: tuple[Piece, ...]
    heldout: tuple[Piece, ...]
    trained_from: np.datetime64
    trained_until: np.datetime64
    heldout_from: np.datetime64
    width: int

    @property
    def rows_trained(self) -> int:
        return sum(map(len, self.training))

    @property
    def rows_heldout(self) -> int:
        return sum(map(len, self.heldout))


class SnapshotFile:
    """One Parquet file. Not for sharing between threads."""

    def __init__(self, path: Path, spec: TrainingSpec) -> None:
        # The system's allocator gives memory back and reserves none ahead, which a memory limit would count.
        pa.set_memory_pool(pa.system_memory_pool())
        self.spec = spec
        self.path = path
        try:
            self._file = pq.ParquetFile(path, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise BadData(
                f"{spec.model_id}: the snapshot {path} cannot be read: {str(error).splitlines()[0]}",
                cure="take a new snapshot",
            ) from None
        metadata = self._file.metadata
        self.rows = int(metadata.num_rows)
        self.group_rows = [int(metadata.row_group(number).num_rows) for number in range(metadata.num_row_groups)]
        schema = self._file.schema_arrow
        wanted = (spec.entity_column, spec.time_column, spec.label, *spec.features)
        missing = [name for name in wanted if name not in schema.names]
        if missing:
            raise BadData(
                f"{spec.model_id}: the snapshot has no column {', '.join(map(repr, missing))}",
                cure=f"correct models.{spec.model_id} or its source",
            )
        self.types: dict[str, pa.DataType] = {name: schema.field(name).type for name in wanted}

    def is_text(self, name: str) -> bool:
        return not _is_number(self.types[name])

    def table(self, piece: Piece, columns: Sequence[str]) -> pa.Table:
        """The usable rows of a piece."""
        spec = self.spec
        extra = [] if piece.whole else [name for name in (spec.time_column, spec.label) if name not in columns]
        found = self._file.read_row_group(piece.group, columns=[*columns, *extra], use_threads=False)
        if not piece.whole:
            found = found.filter(pa.array(self._usable(found)))
        return found.slice(piece.start, len(piece)).select(list(columns))

    def _usable(self, table: pa.Table) -> NDArray[np.bool_]:
        times = table.column(self.spec.time_column)
        labels = table.column(self.spec.label)
        kept = np.asarray(pc.and_(pc.is_valid(times), pc.is_valid(labels)).to_numpy(zero_copy_only=False))
        return kept if self.is_text(self.spec.label) else kept & ~np.isnan(numbers(labels))

    def outline(self) -> Outline:
        """One pass over times, labels and categories. Raises BadData for rows out of order or too few to split."""
        spec = self.spec
        categories = {name: set[Any]() for name in spec.categorical}
        columns = list(dict.fromkeys((spec.time_column, spec.label, *categories)))
        pieces: list[Piece] = []
        spans: list[tuple[np.datetime64, np.datetime64]] = []
        for group, rows in enumerate(self.group_rows):
            table = self._file.read_row_group(group, columns=columns, use_threads=False)
            kept = self._usable(table)
            found = times(table.column(spec.time_column))[kept]
            if len(found) == 0:
                continue
            if (found[1:] < found[:-1]).any() or (spans and found[0] < spans[-1][1]):
                raise BadData(
                    f"{spec.model_id}: the rows of {self.path} are not ordered by {spec.time_column!r}, which a snapshot"
                    " must be to be read in blocks",
                    cure="take a new snapshot, or write the file ordered by time",
                )
            spans.append((found[0], found[-1]))
            pieces.append(Piece(group, 0, len(found), whole=len(found) == rows))
            for name, values in categories.items():
                found_values = pc.unique(table.column(name)).to_pylist()
                values.update(value for value in found_values if value is not None and value == value)
                if len(values) > MOST_CATEGORIES:
                    raise too_many_categories(spec, name)
        if not pieces:
            raise BadData(
                f"{spec.model_id}: the snapshot has no rows with the label {spec.label!r}",
                cure=f"check models.{spec.model_id}.label, its source, and that rows have an event time",
            )
        text = {name: values for name, values in categories.items() if self.is_text(name)}
        return self._cut(pieces, spans, self._kinds(text), width_of(spec, map(len, categories.values())))

    def _kinds(self, text: dict[str, set[Any]]) -> dict[str, Kind]:
        spec = self.spec
        kinds: dict[str, Kind] = {}
        for name in spec.features:
            if name not in spec.categorical:
                kinds[name] = "numeric"
            elif name not in text:
                kinds[name] = "coded"
            else:
                served = as_served(np.array(sorted(text[name]), dtype=object), name, spec.model_id)
                kinds[name] = "text" if served.dtype == object else "coded"
        return kinds

    def _cut(
        self, pieces: list[Piece], spans: list[tuple[np.datetime64, np.datetime64]], kinds: dict[str, Kind], width: int
    ) -> Outline:
        """The split of `frame.split`, found without holding all times."""
        spec = self.spec
        total = sum(map(len, pieces))
        start = self._time_at(pieces, first_heldout(total, spec))
        until = start - np.timedelta64(round(spec.embargo_s * 1_000_000), "us")
        training, heldout = [], []
        trained_until = until
        for piece, (earliest, latest) in zip(pieces, spans, strict=True):
            below, held = len(piece), 0
            if latest >= until or latest >= start:
                inside = times(self.table(piece, [spec.time_column]).column(0)) if earliest < start else None
                below = 0 if inside is None else int(np.searchsorted(inside, until, side="left"))
                held = 0 if inside is None else int(np.searchsorted(inside, start, side="left"))
                if below:
                    assert inside is not None
                    trained_until = inside[below - 1]
                if held < len(piece) and latest >= start:
                    heldout.append(Piece(piece.group, held, len(piece), piece.whole))
            else:
                trained_until = latest
            if below:
                training.append(Piece(piece.group, 0, below, piece.whole))
        if not training:
            raise BadData(
                f"{spec.model_id}: no row is older than the held-out slice"
                f" (it begins {moment(start).isoformat()}, the embargo is {timedelta(seconds=spec.embargo_s)})",
                cure="use more rows, a shorter training.embargo or a smaller training.heldout_fraction",
            )
        return Outline(kinds, tuple(training), tuple(heldout), spans[0][0], trained_until, start, width)

    def newest(self, outline: Outline, share: float) -> Outline:
        """The same with the newest share of its training rows only; rows of one instant stay together."""
        rows = outline.rows_trained
        start = self._time_at(outline.training, rows - max(1, int(rows * share)))
        kept: list[Piece] = []
        for piece in reversed(outline.training):
            inside = times(self.table(piece, [self.spec.time_column]).column(0))
            first = int(np.searchsorted(inside, start, side="left"))
            if first < len(piece):
                kept.insert(0, replace(piece, start=piece.start + first))
            if first > 0:
                break
        return replace(outline, training=tuple(kept), trained_from=start)

    def _time_at(self, pieces: Sequence[Piece], position: int) -> np.datetime64:
        for piece in pieces:
            if position < len(piece):
                found: np.datetime64 = times(self.table(piece, [self.spec.time_column]).column(0))[position]
                return found
            position -= len(piece)
        raise AssertionError("a position beyond the last row")


def width_of(spec: TrainingSpec, categories: Iterable[int]) -> int:
    """Columns of the encoded matrix, given the number of distinct values of each categorical feature, NULL aside."""
    return len(spec.features) - len(spec.categorical) + sum(count + 1 for count in categories)


def give_back() -> None:
    """Return freed memory to the system, which would otherwise pile up in fragments over thousands of groups."""
    pa.default_memory_pool().release_unused()


def times(column: pa.ChunkedArray) -> NDArray[np.datetime64]:
    """Event times as UTC microseconds."""
    return np.asarray(column.cast(pa.timestamp("us"), safe=False).to_numpy()).astype("datetime64[us]")


def numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A numeric column as float64; NaN where there is no number: NULL, NaN and infinities alike."""
    found = np.asarray(column.to_numpy()) if pa.types.is_floating(column.type) else _cast(column)
    values = found.astype(np.float64, copy=False)
    with np.errstate(invalid="ignore", over="ignore"):
        sound = np.isfinite(values.sum())
    if not sound and (infinite := np.isinf(values)).any():
        values = np.where(infinite, np.nan, values)
    return values


def coded(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A categorical column whose values are numbers, also where they are stored as text."""
    if _is_number(column.type):
        return numbers(column)
    encoded = column.combine_chunks().dictionary_encode()
    served = as_served(np.array(encoded.dictionary.to_pylist(), dtype=object), "", "")
    # The whole column is numbers; a group may hold only its missing ones.
    values = np.array([value if isinstance(value, float) else np.nan for value in served.tolist()], dtype=np.float64)
    return np.append(np.where(np.isfinite(values), values, np.nan), np.nan)[_codes(encoded)]


def texts(column: pa.ChunkedArray) -> NDArray[Any]:
    """A text column as objects, None where absent; "nan" and "inf" as text are absent, as Service B reads them."""
    encoded = column.combine_chunks().dictionary_encode()
    served = as_served(np.array(encoded.dictionary.to_pylist(), dtype=object), "", "")
    values = [value if isinstance(value, str) else None for value in served.tolist()]
    return np.array([*values, None], dtype=object)[_codes(encoded)]


def _codes(encoded: pa.DictionaryArray) -> NDArray[np.int64]:
    """The position of each value in the dictionary, -1 (numpy's last) for none."""
    return np.asarray(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)


def _cast(column: pa.ChunkedArray) -> NDArray[Any]:
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy())


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    )
