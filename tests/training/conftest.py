"""Snapshots and models that several tests share, made once."""

from __future__ import annotations

from pathlib import Path

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
