"""Snapshots and models that several tests share, made once."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from servicectl.training.spec import Trained
from tests.training.making import DATA, bank, bank_spec, bike_spec, long_snapshot, storm_spec, trained, wide_snapshot


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="session")
def bank_before(work: Path) -> Path:
    """The first 20,000 calls."""
    return bank(work / "bank_before.parquet", "r <= 20000")


@pytest.fixture(scope="session")
def bank_after(work: Path) -> Path:
    """The same and the newest 15,000: another market."""
    return bank(work / "bank_after.parquet", "r <= 20000 OR r > n - 15000")


@pytest.fixture(scope="session")
def bank_champion(work: Path, bank_before: Path) -> Trained:
    return trained(work / "champion", bank_before, bank_spec())


@pytest.fixture(scope="session")
def bank_challenger(work: Path, bank_after: Path) -> Trained:
    return trained(work / "challenger", bank_after, bank_spec())


@pytest.fixture(scope="session")
def storms(work: Path) -> Path:
    return wide_snapshot(work / "storms.parquet", f"SELECT * FROM '{DATA / 'atlantic_storms.parquet'}'", storm_spec())


@pytest.fixture(scope="session")
def bikes(work: Path) -> Path:
    """Regression, from the long form."""
    spec = bike_spec()
    columns = {name: name for name in (*spec.features, spec.label)}
    return long_snapshot(work / "bikes.parquet", f"'{DATA / 'bike_sharing_hourly.parquet'}'", columns, spec)


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of column with gaps, text labels, and small row groups."""
    path = tmp_path_factory.mktemp("mixed") / "mixed.parquet"
    with duckdb.connect() as connection:
        connection.execute(
            "COPY (SELECT 'e' || (i % 7) AS entity_id, TIMESTAMP '2026-01-01' + to_seconds(i // 2) AS event_timestamp,"
            " CASE WHEN i % 97 = 5 THEN NULL WHEN hash(i) % 3 = 0 THEN 'yes' ELSE 'no' END AS y,"
            " CASE WHEN i % 11 = 0 THEN NULL WHEN i % 501 = 1 THEN 'inf'::DOUBLE ELSE exp((hash(i + 1) % 1000) / 100.0) - 30 END AS a,"
            " CASE WHEN i % 5 = 0 THEN NULL ELSE 'w' || (hash(i + 2) % 4) END AS word,"
            " CAST(hash(i + 3) % 50 AS INTEGER) AS b,"
            " CASE WHEN i % 13 = 0 THEN NULL ELSE CAST(hash(i + 4) % 3 AS DOUBLE) END AS code,"
            " CAST(hash(i + 5) % 4 AS VARCHAR) AS digits, NULL::DOUBLE AS never"
            f" FROM range(30000) AS t(i) ORDER BY event_timestamp, i) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 2048)"
        )
    return path
