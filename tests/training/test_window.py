"""How far back a model learns from."""

from __future__ import annotations

import pickle
from pathlib import Path

import duckdb
import pytest

from servicectl.errors import ConfigError
from servicectl.training.fit import train
from servicectl.training.floor import TrainRequest
from servicectl.training.spec import Trained, TrainingSpec
from tests.training.making import wide_snapshot


def spec(**changes: object) -> TrainingSpec:
    return TrainingSpec(  # type: ignore[arg-type]  # overrides by keyword
        **{"model_id": "M", "task": "regression", "label": "y", "features": ("x",), "window_auto": True} | changes
    )


def learnt(folder: Path, label: str, chosen: TrainingSpec) -> Trained:
    rows = f"SELECT 'e' || i AS entity_id, TIMESTAMP '2026-01-01' + to_seconds(i) AS event_timestamp, (hash(i) % 1000) / 1000.0 AS x, {label} AS y FROM range(4000) AS t(i)"  # fmt: skip
    snapshot = wide_snapshot(folder / "x.parquet", rows, chosen)
    return train(TrainRequest(spec=chosen, snapshot=str(snapshot), folder=str(folder)))


def test_where_the_world_has_changed_the_newest_rows_are_learnt_from(tmp_path: Path) -> None:
    # The relation turns round after 60 % of the rows; the newest 30 % of those trained on know nothing else.
    found = learnt(tmp_path, "CASE WHEN i < 2000 THEN x ELSE -x END", spec())

    assert found.window_share in (0.3, 0.1)
    assert found.window_scores["1"] < found.window_scores["0.3"]
    assert found.rows_trained == pytest.approx(3200 * (found.window_share or 0), abs=2)
    model = pickle.loads(Path(found.model.path).read_bytes())
    assert model[-1].coef_[0] < 0
    assert found.sample is not None
    with duckdb.connect() as connection:
        [(rows, oldest)] = connection.execute(
            f"SELECT count(*), min(event_timestamp) FROM '{found.sample.path}'"
        ).fetchall()
    assert rows == found.rows_trained
    assert oldest == found.trained_from.replace(tzinfo=None)


def test_where_nothing_changes_all_history_is_kept(tmp_path: Path) -> None:
    found = learnt(tmp_path, "x + (hash(i + 5) % 1000) / 250.0", spec())

    assert found.window_share == 1.0
    assert found.rows_trained == 3200
    assert set(found.window_scores) == {"1", "0.6", "0.3", "0.1"}


def test_several_windows_are_not_tried_on_rows_read_in_blocks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the rows in memory"):
        learnt(tmp_path, "x", spec(training="streaming", estimator="sklearn.linear_model.SGDRegressor"))
