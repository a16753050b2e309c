"""How far back a model learns from."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import duckdb
import numpy as np
import pytest

from servicectl.errors import ConfigError
from servicectl.training import window
from servicectl.training.fit import train
from servicectl.training.floor import TrainRequest
from servicectl.training.frame import read, split
from servicectl.training.parquet import SnapshotFile, times
from servicectl.training.spec import Trained, TrainingSpec
from servicectl.training.window import newest
from tests.training.making import mixed_spec, wide_snapshot


def spec(**changes: object) -> TrainingSpec:
    return TrainingSpec(  # type: ignore[arg-type]  # overrides by keyword
        **{"model_id": "M", "task": "regression", "label": "y", "features": ("x",), "window_auto": True} | changes
    )


def learnt(folder: Path, label: str, chosen: TrainingSpec) -> Trained:
    rows = f"SELECT 'e' || i AS entity_id, TIMESTAMP '2026-01-01' + to_seconds(i) AS event_timestamp, (hash(i) % 1000) / 1000.0 AS x, {label} AS y FROM range(4000) AS t(i)"  # fmt: skip
    snapshot = wide_snapshot(folder / "x.parquet", rows, chosen, ", ROW_GROUP_SIZE 2048")
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


SGD = "sklearn.linear_model.SGDRegressor"


@pytest.mark.parametrize("sample_rows", [100_000, 900])
def test_in_blocks_the_choice_is_made_on_a_sample_and_the_window_is_learnt_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_rows: int
) -> None:
    monkeypatch.setattr(window, "_SAMPLE_ROWS", sample_rows)
    found = learnt(
        tmp_path,
        "CASE WHEN i < 2000 THEN x ELSE -x END",
        spec(training="streaming", estimator=SGD, params={"alpha": 0}),
    )

    assert found.training == "streaming"
    assert found.window_share in (0.3, 0.1)
    assert found.rows_trained == pytest.approx(3200 * (found.window_share or 0), abs=2)
    assert (found.trained_until - found.trained_from).total_seconds() == found.rows_trained - 1
    assert pickle.loads(Path(found.model.path).read_bytes())[-1].coef_[0] < 0
    baseline = json.loads(Path(found.baseline.path).read_bytes())
    assert (baseline["rows"], baseline["label"]["count"]) == (found.rows_trained, found.rows_trained)


def test_in_blocks_all_history_is_kept_where_nothing_changes(tmp_path: Path) -> None:
    found = learnt(tmp_path, "x + (hash(i + 5) % 1000) / 250.0", spec(training="streaming", estimator=SGD))

    assert (found.window_share, found.rows_trained) == (1.0, 3200)


def test_the_newest_rows_are_the_same_in_blocks_and_in_memory(mixed: Path) -> None:
    chosen = mixed_spec()
    file, rows = SnapshotFile(mixed, chosen), split(read(mixed, chosen), chosen).training
    outline = file.outline()
    for share in (0.6, 0.3, 0.10003, 0.00001):
        expected, found = newest(rows, share), file.newest(outline, share)
        held = [times(file.table(piece, [chosen.time_column]).column(0)) for piece in found.training]

        assert np.concatenate(held).tolist() == expected.times.tolist()
        assert found.trained_from == expected.times[0]
        assert found.heldout == outline.heldout


def test_the_sample_is_spread_evenly_and_holds_what_memory_would(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "_SAMPLE_ROWS", 1000)
    chosen = mixed_spec()
    file, rows = SnapshotFile(mixed, chosen), split(read(mixed, chosen), chosen).training
    sample = window._even_sample(file, file.outline())
    every = -(-len(rows) // 1000)
    expected = rows.part(slice(0, None, every))

    assert 900 < len(sample) <= 1000
    assert sample.times.tolist() == expected.times.tolist()
    assert sample.labels.tolist() == expected.labels.tolist()
    for name, column in expected.features.items():
        assert repr(sample.features[name].tolist()) == repr(column.tolist())
    pairs = set(zip(sample.entities.tolist(), expected.entities.tolist(), strict=True))
    assert len(pairs) == len(set(expected.entities.tolist()))


def test_what_cannot_learn_in_memory_cannot_try_windows(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'models\.M\.window = "auto" tries several windows in memory'):
        learnt(tmp_path, "x", spec(estimator="trainer:steps"))
