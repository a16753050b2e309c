"""A snapshot in memory: columns as numpy arrays, in time order, and the split into training and held-out rows."""

from __future__ import annotations

import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from servicectl.errors import BadData
from servicectl.files import sha256_of
from servicectl.sql import identifier, literal
from servicectl.training.spec import SnapshotFacts, TrainingSpec, aware

if TYPE_CHECKING:
    import pandas as pd

    from servicectl.training.floor import DescribeRequest

_NUMBER = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT|U?INTEGER|FLOAT|DOUBLE|DECIMAL\(\d+,\d+\)|BOOLEAN")
MOST_CATEGORIES = 1000  # one column each: more is an identifier, not a category


@dataclass(frozen=True)
class Rows:
    """Snapshot rows in time order.

    `labels` are float64 numbers or text (object); a numeric feature is float64 with NaN for absent, a text one object
    with None. `entities` are small integers, one per entity.
    """

    times: NDArray[np.datetime64]
    entities: NDArray[np.int64]
    labels: NDArray[Any]
    features: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.times)

    def part(self, chosen: slice | NDArray[Any]) -> Rows:
        return Rows(
            self.times[chosen],
            self.entities[chosen],
            self.labels[chosen],
            {name: column[chosen] for name, column in self.features.items()},
        )

    def frame(self) -> pd.DataFrame:
        """The features by name; text as plain objects with NaN for absent, whatever pandas would prefer."""
        import pandas as pd

        columns = {}
        for name, column in self.features.items():
            values = np.where(absent(column), np.nan, column) if column.dtype == object else column
            columns[name] = pd.Series(values, dtype=values.dtype)
        return pd.DataFrame(columns)


class Frames(ABC):
    """Features of rows that are not all in memory: an iteration over DataFrames, in the order of the rows."""

    @abstractmethod
    def __iter__(self) -> Iterator[pd.DataFrame]: ...


@dataclass(frozen=True)
class Split:
    """The older part to train on and the newest part to judge on; rows within the embargo are in neither."""

    training: Rows
    heldout: Rows


def split(rows: Rows, spec: TrainingSpec) -> Split:
    """Hold out the newest `heldout_fraction` of rows by time, `heldout_rows` at most. Rows of one instant are never
    separated.

    Raises BadData if one of the two parts would be empty.
    """
    start = rows.times[first_heldout(len(rows), spec)]
    until = start - np.timedelta64(round(spec.embargo_s * 1_000_000), "us")
    trained = int(np.searchsorted(rows.times, until, side="left"))
    held = int(np.searchsorted(rows.times, start, side="left"))
    if trained == 0:
        raise BadData(
            f"{spec.model_id}: no row is older than the held-out slice"
            f" (it begins {moment(start).isoformat()}, the embargo is {timedelta(seconds=spec.embargo_s)})",
            cure="use more rows, a shorter training.embargo or a smaller training.heldout_fraction",
        )
    return Split(rows.part(slice(0, trained)), rows.part(slice(held, None)))


def first_heldout(rows: int, spec: TrainingSpec) -> int:
    """The position of the first held-out row among all rows in time order."""
    return min(max(int(rows * (1 - spec.heldout_fraction)), rows - spec.heldout_rows), rows - 1)


def absent(column: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values of a feature are not there: NaN among numbers, None among text."""
    if column.dtype == object:
        return np.array([value is None for value in column.tolist()], dtype=np.bool_)
    return np.asarray(np.isnan(column), dtype=np.bool_)


def label_text(label: object) -> str:
    """One label as text: whole numbers without a point, so that 1.0 from a DOUBLE column reads "1"."""
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label)


def moment(time: np.datetime64) -> datetime:
    """Given a time of a snapshot, the aware datetime."""
    instant = time.astype("datetime64[us]").item()
    assert isinstance(instant, datetime)
    return aware(instant)


def read(path: Path, spec: TrainingSpec) -> Rows:
    """All rows of a snapshot. Raises BadData for a snapshot that does not fit the spec."""
    with _connection(spec) as connection:
        types = _checked_types(connection, path, spec)
        selected = [
            f"CAST({identifier(spec.time_column)} AS TIMESTAMP) AS t",
            f"CAST({identifier(spec.entity_column)} AS VARCHAR) AS e",
            f"{_cast(types[spec.label], spec.label)} AS y",
            *(f"{_cast(types[name], name)} AS x{number}" for number, name in enumerate(spec.features)),
        ]
        found = connection.execute(
            f"SELECT * FROM (SELECT {', '.join(selected)} FROM read_parquet({literal(str(path))}))"
            " WHERE t IS NOT NULL AND y IS NOT NULL"
        ).fetchnumpy()
    times = np.asarray(found["t"]).astype("datetime64[us]")
    labels = _plain(found["y"])
    features = {}
    for number, name in enumerate(spec.features):
        column = _plain(found[f"x{number}"])
        features[name] = as_served(column, name, spec.model_id) if column.dtype == object else column
    entities = np.unique(_plain(found["e"]).astype(str), return_inverse=True)[1].astype(np.int64)
    rows = Rows(times, entities, labels, features)
    if labels.dtype == np.float64 and np.isnan(labels).any():
        rows = rows.part(~np.isnan(labels))
    if len(rows) == 0:
        raise _no_rows(spec)
    # The query orders them; a file by other means may not be.
    ordered = bool(np.all(rows.times[:-1] <= rows.times[1:]))
    return rows if ordered else rows.part(np.argsort(rows.times, kind="stable"))


def sample_of(path: Path, rows: Rows, spec: TrainingSpec) -> bytes:
    """A seeded sample of the training rows as they stand in the snapshot, as the bytes of a Parquet file."""
    from servicectl.training.baseline import sample_positions

    columns = ", ".join(map(identifier, (spec.entity_column, spec.time_column, spec.label, *spec.features)))
    time = f"CAST({identifier(spec.time_column)} AS TIMESTAMP)"
    with _connection(spec) as connection, tempfile.TemporaryDirectory() as folder:
        connection.register("picked", {"place": sample_positions(len(rows), spec.seed, len(spec.features))})
        target = Path(folder) / "sample.parquet"
        connection.execute(
            f"COPY (SELECT {columns} FROM (SELECT {columns}, row_number() OVER () - 1 AS place FROM"
            f" read_parquet({literal(str(path))}) WHERE {identifier(spec.label)} IS NOT NULL"
            f" AND {time} >= TIMESTAMP {_instant(rows, 0)} AND {time} <= TIMESTAMP {_instant(rows, -1)}) SEMI JOIN picked"
            f" USING (place) ORDER BY place) TO {literal(str(target))} (FORMAT parquet, COMPRESSION zstd)"
        )
        return target.read_bytes()


def _instant(rows: Rows, place: int) -> str:
    return literal(str(moment(rows.times[place]).replace(tzinfo=None)))


def describe(request: DescribeRequest) -> SnapshotFacts:
    """The child's side of `floor.describe`."""
    spec, path = request.spec, Path(request.snapshot)
    with _connection(spec) as connection:
        types = _checked_types(connection, path, spec)
        table = f"read_parquet({literal(str(path))})"
        time, label = identifier(spec.time_column), identifier(spec.label)
        counts = ", ".join(f"count({identifier(name)})" for name in spec.features)
        rows, labelled, first, last, *present = connection.execute(
            f"SELECT count(*), count({label}), min(CAST({time} AS TIMESTAMP)), max(CAST({time} AS TIMESTAMP)), {counts}"
            f" FROM {table}"
        ).fetchall()[0]
        if rows == 0 or labelled == 0:
            raise _no_rows(spec)
        absent = [name for name, count in zip(spec.features, present, strict=True) if count == 0]
        if absent:
            raise BadData(
                f"{spec.model_id}: no row has feature {', '.join(map(repr, absent))} (of {rows} rows)",
                cure=f"correct models.{spec.model_id}.features, or see why the feature store has no value of it",
            )
        for name in spec.categorical:
            if types[name] == "VARCHAR":
                as_served(_categories(connection, table, name, spec), name, spec.model_id)
        shares = _class_shares(connection, table, types[spec.label], spec) if spec.task == "classification" else None
    return SnapshotFacts(
        rows=rows,
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
        first=aware(first),
        last=aware(last),
        columns=tuple(types),
        types=types,
        class_shares=shares,
        query=request.query,
    )


def as_number(text: str) -> float | str:
    """Text as Service B reads it from the wire: with a point a float, else an int, else a float, else text."""
    try:
        return float(text) if "." in text else float(int(text))
    except (ValueError, OverflowError):
        pass
    try:
        return float(text)
    except ValueError:
        return text


def as_served(column: NDArray[Any], name: str, model_id: str) -> NDArray[Any]:
    """Given a text feature, the values that the served model will see.

    A feature whose text is all numbers arrives as numbers, so it must be learnt as numbers. Raises BadData if only
    some values are: those would arrive as another type than they were learnt with.
    """
    values = {value: as_number(value) for value in set(column.tolist()) if value is not None}
    numbers = {value: number for value, number in values.items() if isinstance(number, float)}
    if not values or len(numbers) == len(values):
        return np.array([numbers.get(value, np.nan) for value in column], dtype=np.float64)
    finite = [value for value, number in sorted(numbers.items()) if np.isfinite(number)]
    if finite:
        text = next(value for value in values if value not in numbers)
        raise BadData(
            f"{model_id}: feature {name!r} mixes numbers ({finite[0]!r}) and text ({text!r});"
            " Service B parses each request by itself and would hand them to the model as different types",
            cure="code that feature as text only or as numbers only",
        )
    # What is left of the numbers is "nan" and "inf" as text: absent, as for numeric features.
    return np.array([None if value in numbers else value for value in column], dtype=object)


def _connection(spec: TrainingSpec) -> duckdb.DuckDBPyConnection:
    options: dict[str, str | bool | int | float | list[str]] = {
        "threads": spec.threads,
        "temp_directory": "",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    if spec.memory_mb:
        # The rest is for the arrays and the fit.
        options["memory_limit"] = f"{max(64, spec.memory_mb // 3)}MB"
    return duckdb.connect(config=options)


def _checked_types(connection: duckdb.DuckDBPyConnection, path: Path, spec: TrainingSpec) -> dict[str, str]:
    try:
        described = connection.execute(f"DESCRIBE SELECT * FROM read_parquet({literal(str(path))})").fetchall()
    except duckdb.Error as error:
        raise BadData(
            f"{spec.model_id}: the snapshot {path} cannot be read: {str(error).splitlines()[0]}",
            cure="take a new snapshot",
        ) from None
    types = {str(row[0]): str(row[1]) for row in described}
    wanted = (spec.entity_column, spec.time_column, spec.label, *spec.features)
    missing = [name for name in wanted if name not in types]
    if missing:
        raise BadData(
            f"{spec.model_id}: the snapshot has no column {', '.join(map(repr, missing))}; it has: {', '.join(types)}",
            cure=f"correct models.{spec.model_id} or its source",
        )
    numeric = [name for name in spec.features if name not in spec.categorical]
    if spec.task == "regression":
        numeric.append(spec.label)
    for name in numeric:
        if not _is_number(types[name]):
            raise BadData(
                f"{spec.model_id}: {name!r} holds {types[name]}, not numbers",
                cure=f"list it under models.{spec.model_id}.categorical, or code it as a number",
            )
    return types


def _is_number(kind: str) -> bool:
    return _NUMBER.fullmatch(kind) is not None


def _cast(kind: str, name: str) -> str:
    return f"CAST({identifier(name)} AS {'DOUBLE' if _is_number(kind) else 'VARCHAR'})"


def _plain(column: Any) -> NDArray[Any]:
    """A DuckDB column without its mask: absent numbers are NaN, absent text None. Infinities count as absent."""
    values = np.asarray(np.ma.getdata(column))
    absent = np.ma.getmaskarray(column)
    if values.dtype.kind in "fiub":
        numbers = values.astype(np.float64)
        numbers[absent | ~np.isfinite(numbers)] = np.nan
        return numbers
    text = values.astype(object)
    text[absent] = None
    return text


def _categories(connection: duckdb.DuckDBPyConnection, table: str, name: str, spec: TrainingSpec) -> NDArray[Any]:
    column = identifier(name)
    found = connection.execute(
        f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL LIMIT {literal(MOST_CATEGORIES + 1)}"
    ).fetchall()
    if len(found) > MOST_CATEGORIES:
        raise too_many_categories(spec, name)
    return np.array([value for (value,) in found], dtype=object)


def too_many_categories(spec: TrainingSpec, name: str) -> BadData:
    return BadData(
        f"{spec.model_id}: the categorical feature {name!r} has more than {MOST_CATEGORIES} values",
        cure="group its values; a code that is nearly unique per row teaches nothing",
    )


def _class_shares(connection: duckdb.DuckDBPyConnection, table: str, kind: str, spec: TrainingSpec) -> dict[str, float]:
    label = _cast(kind, spec.label)
    found = connection.execute(
        f"SELECT {label}, count(*) FROM {table} WHERE {identifier(spec.label)} IS NOT NULL GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    if len(found) == 1:
        raise BadData(
            f"{spec.model_id}: every row of the snapshot has the label {label_text(found[0][0])!r};"
            " one class cannot be told apart",
            cure=f"widen models.{spec.model_id}.window, or correct its label",
        )
    total = sum(count for _, count in found)
    return {label_text(value): count / total for value, count in found}


def _no_rows(spec: TrainingSpec) -> BadData:
    return BadData(
        f"{spec.model_id}: the snapshot has no rows with the label {spec.label!r}",
        cure=f"check models.{spec.model_id}.label, its source, and that rows have an event time",
    )
