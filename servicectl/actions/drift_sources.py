"""Where the rows of each model are: the feature store's long table, a wide one, a SELECT, what models answered, a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from servicectl.actions.handler_copy import copied
from servicectl.config import SourceConfig
from servicectl.drift.values import FeatureRows
from servicectl.drift.windows import WideWindowFile, WindowFile
from servicectl.drift.windows_sql import Long, Wide, counts_query, long_table, wide_table, windows_query
from servicectl.errors import BadAnswer, ConfigError, TryAgain
from servicectl.sql import identifier, literal

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from servicectl.actions.world import World
    from servicectl.estate.registry import ModelRow

STORE = SourceConfig()
"""The feature store's long table: what Service C measures, and what a model without a section is taken to use."""


@dataclass(frozen=True)
class Origin:
    """One place that rows come from: the columns (or long-table features) that are wanted of it. `table` is what a
    Parquet file stands in for."""

    name: str
    names: tuple[str, ...]
    rows: Long | Wide
    table: str = "features_table"


class Reader(Protocol):
    """Whoever has the rows."""

    def copy(self, query: str, target: Path, table: str) -> int: ...

    def read(self, query: str, table: str) -> list[dict[str, Any]]: ...


def source_of(world: World, model_id: str) -> SourceConfig:
    model = world.config.models.get(model_id)
    return model.source if model is not None else STORE


def origin_name(source: SourceConfig) -> str:
    """One word for each different place; "" for the feature store's long table."""
    if source == STORE:
        return ""
    where = source.query if source.kind == "sql" else source.table
    return f"{source.kind} {where} {source.entity_column} {source.time_column}"


def origins(world: World, rows: Iterable[ModelRow], labels: Mapping[str, str]) -> dict[str, Origin]:
    """Given production rows and the labels to look at by model, every place once, with what is wanted of it."""
    names: dict[str, set[str]] = {}
    texts: dict[str, set[str]] = {}
    sources: dict[str, SourceConfig] = {}
    for row in rows:
        source = source_of(world, row.model_id)
        place = origin_name(source)
        sources[place] = source
        wanted = names.setdefault(place, set())
        wanted |= {feature.name for feature in row.expected_features}
        wanted |= {labels[row.model_id]} if row.model_id in labels else set()
        model = world.config.models.get(row.model_id)
        texts.setdefault(place, set()).update(model.categorical if model is not None else ())
    return {
        place: Origin(place, tuple(sorted(names[place])), _rows(source, texts[place]), source.table)
        for place, source in sources.items()
        if names[place]
    }


def _rows(source: SourceConfig, texts: Iterable[str]) -> Long | Wide:
    if source.kind == "long":
        return long_table(source.table, source.entity_column, source.time_column)
    query = source.query if source.kind == "sql" else None
    # As a snapshot does it: a category is text there, whatever the table holds.
    return wide_table(source.table, query, source.entity_column, source.time_column, texts)


@contextmanager
def windows(reader: Reader, origin: Origin, target: Path) -> Iterator[WindowFile | WideWindowFile]:
    """The windows of one origin, in a file that is gone at the end. Raises BadAnswer for a copy that is not whole."""
    try:
        count = reader.copy(windows_query(origin.names, origin.rows), target, origin.table)
        file = WideWindowFile(target, origin.names) if isinstance(origin.rows, Wide) else WindowFile(target)
        with file:
            if (found := file.rows()) != count:
                raise BadAnswer(f"{count} rows were counted, the windows hold {found}", cure="try again")
            yield file
    finally:
        target.unlink(missing_ok=True)


def counts(reader: Reader, origin: Origin) -> dict[str, FeatureRows]:
    """How many rows there are of each name, and how new they are."""
    told = reader.read(counts_query(origin.names, origin.rows), origin.table)
    if isinstance(origin.rows, Wide):
        return dict.fromkeys(origin.names, _counted(told[0])) if told else {}
    found = {str(one["feature_name"]): _counted(one) for one in told}
    return {name: found.get(name, FeatureRows(0, 0, None)) for name in origin.names}


def label_rows(world: World, reader: Reader, model_id: str) -> FeatureRows:
    """How many rows there are with a configured model's label, and how new they are; of a wide source, of all rows."""
    model = world.config.model(model_id)
    origin = Origin("labels", (model.label,), _rows(model.source, ()), model.source.table)
    return counts(reader, origin).get(model.label, FeatureRows(0, 0, None))


def _counted(told: Mapping[str, Any]) -> FeatureRows:
    newest, oldest = (datetime.fromisoformat(str(told[end])) if told[end] else None for end in ("newest", "oldest"))
    return FeatureRows(int(told["all_rows"]), int(told["without_time"]), newest, oldest)


@contextmanager
def reader(world: World) -> Iterator[Reader]:
    """The handler; or the file that the configuration names in its place. Raises as either does."""
    if world.config.drift.file is None:
        yield _Handler(world)
        return
    base = Path(world.config.path).absolute().parent if world.config.path else Path.cwd()
    with _File.opened(base / Path(world.config.drift.file).expanduser()) as file:
        yield file


@dataclass(frozen=True)
class _Handler:
    world: World

    def copy(self, query: str, target: Path, table: str) -> int:  # noqa: ARG002 -- the handler has all tables
        return copied(self.world, query, target)

    def read(self, query: str, table: str) -> list[dict[str, Any]]:  # noqa: ARG002 -- the handler has all tables
        return self.world.queue.read(query)


@dataclass(frozen=True)
class _File:
    path: Path
    connection: DuckDBPyConnection
    tables: set[str] = field(default_factory=set)

    @staticmethod
    @contextmanager
    def opened(path: Path) -> Iterator[_File]:
        import duckdb

        if not path.is_file():
            raise ConfigError(f"drift.file: there is no file {path}", cure="correct drift.file, or leave it out")
        parquet = path.suffix == ".parquet"
        try:
            connection = duckdb.connect() if parquet else duckdb.connect(str(path), read_only=True)
        except duckdb.Error as error:
            said = str(error).splitlines()[0]
            if "Conflicting lock" in str(error):
                raise TryAgain(
                    f"drift.file: {path} is open elsewhere", cure="leave drift.file out: the handler is asked then"
                ) from error
            raise ConfigError(f"drift.file: {path} cannot be opened: {said}", cure="correct drift.file") from error
        with connection:
            yield _File(path, connection)

    def copy(self, query: str, target: Path, table: str) -> int:
        [(count,)] = self._run(f"COPY ({query}\n) TO {literal(str(target))} (FORMAT parquet)", table).fetchall()
        return int(count)

    def read(self, query: str, table: str) -> list[dict[str, Any]]:
        found = self._run(query, table)
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def _run(self, query: str, table: str) -> DuckDBPyConnection:
        import duckdb

        try:
            if self.path.suffix == ".parquet" and table not in self.tables:
                view = identifier(table.rpartition(".")[2])
                self.connection.execute(f"CREATE VIEW {view} AS FROM read_parquet({literal(str(self.path))})")
                self.tables.add(table)
            return self.connection.execute(query)
        except duckdb.Error as error:
            raise BadAnswer(f"{self.path}: {str(error).splitlines()[0]}", cure="correct drift.file") from error


def has_table(reader: Reader, name: str) -> bool:
    query = f"SELECT 1 AS found FROM information_schema.tables WHERE table_name = {literal(name)} LIMIT 1"
    return bool(reader.read(query, name)) if not _is_parquet(reader) else False


def _is_parquet(reader: Reader) -> bool:
    return isinstance(reader, _File) and reader.path.suffix == ".parquet"
