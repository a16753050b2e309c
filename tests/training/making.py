"""Snapshots made the way the handler makes them: a long table in DuckDB, our query, COPY to Parquet."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import duckdb

from servicectl.training import floor
from servicectl.training.fit import train
from servicectl.training.floor import TrainRequest
from servicectl.training.source import snapshot_query
from servicectl.training.spec import ProductFile, Source, Trained, TrainingSpec

DATA = Path(__file__).resolve().parents[1] / "data"
BANK = DATA.parents[1] / "servicectl/miniature/data/bank_marketing_calls.parquet"
BANK_COLUMNS = {
    "age": "age",
    "balance_eur": "balance_eur",
    "campaign_contacts": "campaign_contacts",
    "days_since_previous": "coalesce(days_since_previous, -1)",
    "previous_contacts": "previous_contacts",
    "credit_default": "credit_default = 'yes'",
    "housing_loan": "housing_loan = 'yes'",
    "personal_loan": "personal_loan = 'yes'",
    "contact_cellular": "contact_type IS NOT DISTINCT FROM 'cellular'",
    "previous_success": "previous_outcome IS NOT DISTINCT FROM 'success'",
}
SGD = "sklearn.linear_model.SGDClassifier"
FEATURES_TABLE = (
    "CREATE TABLE features_table (entity_id TEXT, feature_name TEXT, value DOUBLE, event_timestamp TIMESTAMP,"
    " created_at TIMESTAMP)"
)


def bank_spec(**changes: Any) -> TrainingSpec:
    return TrainingSpec(**{"model_id": "Bank", "label": "subscribed", "features": tuple(BANK_COLUMNS)} | changes)


def storm_spec(**changes: Any) -> TrainingSpec:
    features = ("lat", "long", "wind", "pressure", "tropicalstorm_force_diameter")
    return TrainingSpec(**{"model_id": "Storms", "label": "status", "features": features} | changes)


def bike_spec(**changes: Any) -> TrainingSpec:
    features = ("hr", "workingday", "temp", "hum", "windspeed", "season")
    given = {
        "model_id": "Bikes",
        "task": "regression",
        "label": "cnt",
        "features": features,
        "categorical": ("hr", "season"),
    }
    return TrainingSpec(**given | changes)


def mixed_spec(**changes: Any) -> TrainingSpec:
    given = {
        "model_id": "Mixed",
        "label": "y",
        "features": ("a", "word", "b", "code", "digits", "never"),
        "categorical": ("word", "code", "digits"),
        "estimator": SGD,
        "training": "streaming",
        "passes": 3,
    }
    return TrainingSpec(**given | changes)


def long_snapshot(path: Path, rows: str, columns: dict[str, str], spec: TrainingSpec) -> Path:
    """Put (entity_id, event_timestamp, columns) of a relation into a long table, then take a snapshot of it."""
    with duckdb.connect() as connection:
        connection.execute(FEATURES_TABLE)
        for name, expression in columns.items():
            connection.execute(
                f"INSERT INTO features_table SELECT entity_id, '{name}', CAST({expression} AS DOUBLE), event_timestamp,"
                f" event_timestamp FROM {rows}"
            )
        connection.execute(f"COPY ({snapshot_query(spec, Source())}) TO '{path}' (FORMAT parquet)")
    return path


def wide_snapshot(path: Path, query: str, spec: TrainingSpec, options: str = "") -> Path:
    """Take a snapshot through the user's own SELECT."""
    with duckdb.connect() as connection:
        source = Source(kind="sql", query=query)
        connection.execute(f"COPY ({snapshot_query(spec, source)}) TO '{path}' (FORMAT parquet{options})")
    return path


def product(path: Path, model: object) -> ProductFile:
    """A model file with its true digest."""
    path.write_bytes(pickle.dumps(model, protocol=5))
    return ProductFile(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)


def bank(path: Path, where: str) -> Path:
    numbered = (
        f"(SELECT *, row_number() OVER (ORDER BY event_timestamp, entity_id) AS r, count(*) OVER () AS n FROM '{BANK}')"
    )
    rows = f"(SELECT * FROM {numbered} WHERE {where})"
    return long_snapshot(path, rows, BANK_COLUMNS | {"subscribed": "subscribed"}, bank_spec())


def trained(folder: Path, snapshot: Path, spec: TrainingSpec) -> Trained:
    folder.mkdir()
    return floor.train(spec, snapshot, folder)


def in_blocks(snapshot: Path, spec: TrainingSpec, folder: Path, checkpoints: Path | None = None) -> Trained:
    """In this process; the child's own process is there to be killed."""
    folder.mkdir(exist_ok=True)
    kept = str(checkpoints) if checkpoints else None
    return train(TrainRequest(spec=spec, snapshot=str(snapshot), folder=str(folder), checkpoints=kept))
