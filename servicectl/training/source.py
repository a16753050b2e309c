"""The SQL of a snapshot, for the handler's DuckDB (1.1.3) and ours alike.

A snapshot has one row per label: entity, time, label, then the features by name, ordered by time and entity. Rows
without a usable time (NULL, the year 1 of file uploads, infinity) and values that are no number (NaN, infinities)
count as absent. No value from after a label's own time stands in that label's row.
"""

from __future__ import annotations

from servicectl.errors import ConfigError
from servicectl.sql import identifier, literal
from servicectl.training.spec import Source, TrainingSpec

_EARLIEST = "TIMESTAMP '0002-01-01 00:00:00'"  # file uploads carry the year 1
_LATEST = "TIMESTAMP '9999-12-31 00:00:00'"


def snapshot_query(spec: TrainingSpec, source: Source) -> str:
    """Given what to train and where rows come from, one SELECT to run inside `COPY (...) TO`.

    The window counts back from the newest row that has a label, so that the same data give the same rows on any day.
    Raises ConfigError for names that cannot stand side by side, or a source without what its kind needs.
    """
    _check_names(spec)
    rows = _long(spec, source) if source.kind == "long" else _wide(spec, source)
    columns = [spec.entity_column, spec.time_column, spec.label, *spec.features]
    listed = ", ".join(identifier(column) for column in columns)
    time = identifier(spec.time_column)
    body = f"WITH {rows}, in_time AS (SELECT * FROM labelled{_window(spec, time)})"
    # All columns order the rows, so that duplicates of one entity and time come out alike on every run.
    order = ", ".join(
        identifier(column) for column in [spec.time_column, spec.entity_column, spec.label, *spec.features]
    )
    return f"{body} SELECT {listed} FROM {_limited(spec)} ORDER BY {order}"


def _check_names(spec: TrainingSpec) -> None:
    taken = [spec.entity_column, spec.time_column, spec.label, *spec.features]
    folded = [name.lower() for name in taken]  # DuckDB's names ignore case
    for name in taken:
        if folded.count(name.lower()) > 1:
            raise ConfigError(
                f"models.{spec.model_id}: the name {name!r} is used twice among entity, time, label and features",
                cure=f"correct models.{spec.model_id}.label and models.{spec.model_id}.features",
            )
    for name in spec.categorical:
        if name not in spec.features:
            raise ConfigError(
                f"models.{spec.model_id}.categorical: {name!r} is not among the features",
                cure=f"add it to models.{spec.model_id}.features or drop it from categorical",
            )


def _long(spec: TrainingSpec, source: Source) -> str:
    """Pivot to one row per entity and time, then carry each feature forward: one sort, never a row-by-row join."""
    entity, time = identifier(source.entity_column), identifier(source.time_column)
    names = ", ".join(literal(name) for name in (spec.label, *spec.features))
    observed = (
        f"observed AS (SELECT CAST({entity} AS VARCHAR) AS entity, CAST({time} AS TIMESTAMP) AS moment, feature_name, value,"
        # Of several values for one moment the newest record wins; the value itself breaks a tie, to be the same each run.
        f" row(coalesce(created_at, {_EARLIEST}), value) AS recorded"
        f" FROM {_table(source.table)} WHERE feature_name IN ({names}) AND value IS NOT NULL AND isfinite(value)"
        f" AND {entity} IS NOT NULL AND CAST({time} AS TIMESTAMP) >= {_EARLIEST} AND CAST({time} AS TIMESTAMP) < {_LATEST})"
    )
    columns = [(f"c{number}", name) for number, name in enumerate((spec.label, *spec.features))]
    pivot = ", ".join(
        f"arg_max(value, recorded) FILTER (WHERE feature_name = {literal(name)}) AS {column}"
        for column, name in columns
    )
    pivoted = f"pivoted AS (SELECT entity, moment, {pivot} FROM observed GROUP BY entity, moment)"
    known = ", ".join(
        f"last_value({column} IGNORE NULLS) OVER so_far AS {identifier(name)}" for column, name in columns[1:]
    )
    labelled = (
        f"joined AS (SELECT entity AS {identifier(spec.entity_column)}, moment AS {identifier(spec.time_column)},"
        f" c0 AS {identifier(spec.label)}, {known} FROM pivoted WINDOW so_far AS (PARTITION BY entity ORDER BY moment"
        f" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)),"
        f" labelled AS (SELECT * FROM joined WHERE {identifier(spec.label)} IS NOT NULL)"
    )
    return f"{observed}, {pivoted}, {labelled}"


def _wide(spec: TrainingSpec, source: Source) -> str:
    entity, time, label = identifier(source.entity_column), identifier(source.time_column), identifier(spec.label)
    if source.kind == "wide":
        rows = _table(source.table)
    elif source.query:
        # The line break ends a comment in the user's last line.
        rows = f"({source.query.strip().rstrip(';')}\n)"
    else:
        raise ConfigError(
            f"models.{spec.model_id}.source: kind sql without a query", cure=f"set models.{spec.model_id}.source.query"
        )
    features = ", ".join(
        f"CAST({identifier(name)} AS VARCHAR) AS {identifier(name)}"
        if name in spec.categorical
        else f"{_number_or_null(identifier(name))} AS {identifier(name)}"
        for name in spec.features
    )
    return (
        f"labelled AS (SELECT CAST({entity} AS VARCHAR) AS {identifier(spec.entity_column)},"
        f" CAST({time} AS TIMESTAMP) AS {identifier(spec.time_column)}, {label}, {features} FROM {rows} AS source"
        f" WHERE {entity} IS NOT NULL AND {_number_or_null(label)} IS NOT NULL"
        f" AND CAST({time} AS TIMESTAMP) >= {_EARLIEST} AND CAST({time} AS TIMESTAMP) < {_LATEST})"
    )


def _number_or_null(column: str) -> str:
    # The type is not known here: text stays text, and is named when the snapshot is described.
    return f"CASE WHEN NOT isfinite(TRY_CAST({column} AS DOUBLE)) THEN NULL ELSE {column} END"


def _window(spec: TrainingSpec, time: str) -> str:
    if spec.window_s is None:
        return ""
    micros = round(spec.window_s * 1_000_000)
    return f" WHERE {time} > (SELECT max({time}) FROM labelled) - to_microseconds({literal(micros)})"


def _limited(spec: TrainingSpec) -> str:
    if spec.max_rows is None:
        return "in_time"
    names = [spec.time_column, spec.entity_column, spec.label, *spec.features]
    if spec.sample == "newest":
        order = ", ".join(f"{identifier(name)} DESC" for name in names)
    else:
        # md5, because hash() differs between DuckDB versions and a sample should not.
        key = f"CAST({identifier(spec.time_column)} AS VARCHAR) || {identifier(spec.entity_column)} || {literal(str(spec.seed))}"
        order = f"md5({key}), " + ", ".join(identifier(name) for name in names)
    return f"(SELECT * FROM in_time ORDER BY {order} LIMIT {literal(spec.max_rows)}) AS limited"


def _table(name: str) -> str:
    return ".".join(identifier(part) for part in name.split("."))
