from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from servicectl.errors import BadData, ConfigError, ServicectlError
from servicectl.files import sha256_of
from servicectl.training import floor
from servicectl.training.fit import train
from servicectl.training.frame import read, split
from servicectl.training.servable import modules_needed
from servicectl.training.spec import Trained, TrainingSpec
from tests.training.making import bank_spec, bike_spec, storm_spec, wide_snapshot


def trained_here(spec: TrainingSpec, snapshot: Path, folder: Path) -> Trained:
    """In this process: for what the child's own process adds nothing to."""
    return train(floor.TrainRequest(spec=spec, snapshot=str(snapshot), folder=str(folder)))


def test_the_oldest_rows_are_trained_on_and_the_files_are_the_ones_told(
    bank_champion: Trained, bank_before: Path
) -> None:
    held = split(read(bank_before, bank_spec()), bank_spec()).heldout

    assert bank_champion.rows_trained == 16000
    assert len(held) == 4000
    assert bank_champion.trained_until < bank_champion.heldout_from
    for product in (bank_champion.model, bank_champion.baseline):
        assert (sha256_of(Path(product.path)), Path(product.path).stat().st_size) == (product.sha256, product.bytes)
    assert bank_champion.libraries["scikit-learn"].count(".") == 2
    assert bank_champion.label_codes is None


def test_training_again_gives_the_same_bytes(tmp_path: Path, bank_before: Path, bank_champion: Trained) -> None:
    again = floor.train(bank_spec(), bank_before, tmp_path)

    assert again.model.sha256 == bank_champion.model.sha256
    assert again.baseline.sha256 == bank_champion.baseline.sha256


def test_an_estimator_that_draws_lots_draws_the_same_ones_again(tmp_path: Path, bank_before: Path) -> None:
    spec = bank_spec(estimator="sklearn.ensemble.RandomForestClassifier", params={"n_estimators": 5, "max_depth": 4})

    assert len({floor.train(spec, bank_before, tmp_path).model.sha256 for _ in range(2)}) == 1


def test_the_seed_reaches_the_estimator(tmp_path: Path, bank_before: Path) -> None:
    digests = {
        trained_here(
            bank_spec(estimator="sklearn.ensemble.ExtraTreesClassifier", params={"n_estimators": 2, "max_depth": 3}, seed=seed),
            bank_before,
            tmp_path,
        ).model.sha256
        for seed in (1, 2)
    }  # fmt: skip

    assert len(digests) == 2


def test_the_pickle_names_scikit_learn_and_its_libraries_only(bank_champion: Trained) -> None:
    roots = {name.partition(".")[0] for name in modules_needed(Path(bank_champion.model.path).read_bytes())}

    assert roots <= {"sklearn", "numpy", "collections", "builtins", "_codecs", "copyreg"}
    assert "sklearn" in roots


def test_regression_on_a_long_table(tmp_path: Path, bikes: Path) -> None:
    trained = trained_here(bike_spec(), bikes, tmp_path)
    model = pickle.loads(Path(trained.model.path).read_bytes())
    held = split(read(bikes, bike_spec()), bike_spec()).heldout

    assert trained.estimator == "sklearn.linear_model.Ridge"
    assert model.score(held.frame(), held.labels) > 0.4


def test_text_labels_are_coded_in_sorted_order(tmp_path: Path, storms: Path) -> None:
    trained = trained_here(storm_spec(params={"max_iter": 50}), storms, tmp_path)
    model = pickle.loads(Path(trained.model.path).read_bytes())
    stored = json.loads(Path(trained.baseline.path).read_bytes())

    assert trained.label_codes is not None
    assert list(trained.label_codes) == sorted(trained.label_codes)
    assert list(trained.label_codes.values()) == list(range(len(trained.label_codes)))
    assert stored["label"]["codes"] == trained.label_codes
    assert np.issubdtype(model.classes_.dtype, np.integer)
    assert any("converge" in text for text in trained.warnings)


def test_a_feature_without_any_value_in_the_training_part_does_not_stop_it(tmp_path: Path, storms: Path) -> None:
    spec = storm_spec(heldout_fraction=0.7, estimator="sklearn.tree.DecisionTreeClassifier", params={"max_depth": 3})
    trained = trained_here(spec, storms, tmp_path)
    facts = json.loads(Path(trained.baseline.path).read_bytes())["features"]["tropicalstorm_force_diameter"]

    assert (facts["count"], facts["nulls"], facts["mean"]) == (0, trained.rows_trained, None)


def test_the_baseline_describes_the_training_rows_only(bank_champion: Trained, bank_before: Path) -> None:
    rows = split(read(bank_before, bank_spec()), bank_spec()).training
    stored = json.loads(Path(bank_champion.baseline.path).read_bytes())
    balance, column = stored["features"]["balance_eur"], rows.features["balance_eur"]

    assert (stored["schema"], stored["rows"], balance["count"], balance["nulls"]) == (1, 16000, 16000, 0)
    assert balance["mean"] == pytest.approx(column.mean())
    assert balance["std"] == pytest.approx(column.std())
    assert (balance["min"], balance["max"]) == (column.min(), column.max())
    assert balance["quantiles"]["0.5"] == np.median(column)
    assert sum(balance["histogram"]["counts"]) == 16000
    assert len(balance["histogram"]["edges"]) == 11
    assert stored["label"]["shares"]["1"] == pytest.approx(float((rows.labels == 1).mean()))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"estimator": "sklearn.linear_model.Nonsense"}, "models.Bank.estimator"),
        ({"estimator": "no_such_library.Thing"}, "models.Bank.estimator"),
        ({"estimator": "LogisticRegression"}, "models.Bank.estimator"),
        ({"estimator": "sklearn.linear_model.Ridge"}, "models.Bank.estimator"),
        ({"params": {"nonsense": 1}}, "models.Bank.params"),
        ({"params": {"C": "much"}}, "models.Bank.params"),
    ],
)
def test_an_estimator_that_does_not_work_names_its_key(
    tmp_path: Path, bank_before: Path, changes: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError, match=key):
        trained_here(bank_spec(**changes), bank_before, tmp_path)

    assert not list(tmp_path.iterdir())


def test_one_class_in_the_training_part_is_an_error(tmp_path: Path) -> None:
    spec = TrainingSpec(model_id="M", label="y", features=("a",))
    select = "SELECT 'e' AS entity_id, TIMESTAMP '2026-01-01' + to_seconds(i) AS event_timestamp, i > 85 AS y, i AS a FROM range(100) AS t(i)"  # fmt: skip
    path = wide_snapshot(tmp_path / "x.parquet", select, spec)

    with pytest.raises(BadData, match="all 80 training rows have the label '0'"):
        trained_here(spec, path, tmp_path)


@pytest.mark.parametrize(("memory_mb", "words"), [(100, "the libraries alone take"), (360, "training.memory_mb = 360")])
def test_too_little_memory_is_told_with_its_limit(
    tmp_path: Path, bank_before: Path, memory_mb: int, words: str
) -> None:
    hungry = {"n_estimators": 2000, "min_samples_leaf": 1, "bootstrap": False}
    spec = bank_spec(estimator="sklearn.ensemble.ExtraTreesClassifier", params=hungry, memory_mb=memory_mb)

    with pytest.raises(ServicectlError, match=words) as raised:
        floor.train(spec, bank_before, tmp_path)

    assert "training.max_rows" in raised.value.cure
    assert not list(tmp_path.iterdir())


def test_enough_memory_changes_nothing(tmp_path: Path, bank_before: Path, bank_champion: Trained) -> None:
    spec = msgspec.structs.replace(bank_spec(), memory_mb=700)

    assert floor.train(spec, bank_before, tmp_path).model.sha256 == bank_champion.model.sha256
