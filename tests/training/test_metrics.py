from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as reference
from sklearn.linear_model import LinearRegression, LogisticRegression

from servicectl.errors import ConfigError
from servicectl.training.frame import Rows
from servicectl.training.metrics import Unusable, better, check_name, measure, outputs
from servicectl.training.spec import TrainingSpec

SIZE = 400


def spec(**changes: Any) -> TrainingSpec:
    return TrainingSpec(**{"model_id": "M", "label": "y", "features": ("a", "b")} | changes)


def rows(labels: NDArray[Any]) -> Rows:
    chance = np.random.default_rng(1)
    times = np.arange(len(labels)).astype("datetime64[us]")
    noise = np.arange(len(labels)) % 3
    features = {"a": chance.normal(size=len(labels)) + noise, "b": chance.normal(size=len(labels))}
    return Rows(times, np.zeros(len(labels), dtype=np.int64), labels, features)


def keeps() -> list[NDArray[np.bool_]]:
    everything = np.ones(SIZE, dtype=np.bool_)
    some = everything.copy()
    some[50:120] = False
    return [everything, some]


@pytest.mark.parametrize("classes", [2, 3])
def test_classification_figures_are_scikit_learns(classes: int) -> None:
    given = rows((np.arange(SIZE) % classes).astype(np.float64))
    model = LogisticRegression().fit(given.frame(), given.labels.astype(int))
    answers = outputs(model, given, spec())
    predicted, chances = model.predict(given.frame()), model.predict_proba(given.frame())

    for keep in keeps():
        truth, guess, chance = given.labels[keep], predicted[keep], chances[keep]
        expected = {
            "accuracy": reference.accuracy_score(truth, guess),
            "f1_macro": reference.f1_score(truth, guess, average="macro"),
            "f1_weighted": reference.f1_score(truth, guess, average="weighted"),
            "log_loss": reference.log_loss(truth, chance),
            "balanced_accuracy": reference.balanced_accuracy_score(truth, guess),
        }
        if classes == 2:
            expected["roc_auc"] = reference.roc_auc_score(truth, chance[:, 1])
        assert {name: measure(name, answers, keep) for name in expected} == pytest.approx(expected)


def test_regression_figures_are_scikit_learns() -> None:
    given = rows(np.arange(SIZE) % 3 + np.linspace(0, 1, SIZE))
    model = LinearRegression().fit(given.frame(), given.labels)
    answers = outputs(model, given, spec(task="regression"))

    for keep in keeps():
        truth, guess = given.labels[keep], model.predict(given.frame())[keep]
        expected = {
            "r2": reference.r2_score(truth, guess),
            "mae": reference.mean_absolute_error(truth, guess),
            "rmse": reference.root_mean_squared_error(truth, guess),
            "neg_median_absolute_error": -reference.median_absolute_error(truth, guess),
        }
        assert {name: measure(name, answers, keep) for name in expected} == pytest.approx(expected)


def test_a_class_the_model_never_saw_counts_as_missed() -> None:
    seen = rows((np.arange(SIZE) % 2).astype(np.float64))
    model = LogisticRegression().fit(seen.frame(), seen.labels.astype(int))
    given = rows((np.arange(SIZE) % 3).astype(np.float64))
    answers = outputs(model, given, spec())
    expected = reference.f1_score(given.labels, model.predict(given.frame()), average="macro", zero_division=0)

    assert measure("f1_macro", answers, keeps()[0]) == pytest.approx(expected)
    assert measure("roc_auc", answers, keeps()[0]) is None
    found = measure("log_loss", answers, keeps()[0])
    assert found is not None
    assert found > 5


def test_where_a_figure_is_undefined_there_is_none() -> None:
    given = rows(np.ones(SIZE))
    model = LinearRegression().fit(given.frame(), given.labels)

    assert measure("r2", outputs(model, given, spec(task="regression")), keeps()[0]) is None


def test_better_is_positive_whichever_way_the_metric_points() -> None:
    assert better("r2", 0.9, 0.5) == pytest.approx(0.4)
    assert better("mae", 0.5, 0.9) == pytest.approx(0.4)


class _Nan(LinearRegression):  # type: ignore[misc]  # scikit-learn ships no types
    def predict(self, X: Any) -> NDArray[np.float64]:  # noqa: N803 -- scikit-learn's name
        return np.full(len(X), np.nan)


def test_a_prediction_that_is_not_finite_is_a_finding() -> None:
    given = rows(np.arange(SIZE, dtype=np.float64))

    with pytest.raises(Unusable, match="400 of its 400 predictions are NaN"):
        outputs(_Nan().fit(given.frame(), given.labels), given, spec(task="regression"))


@pytest.mark.parametrize(("metric", "task"), [("nonsense", "classification"), ("r2", "classification"), ("f1_macro", "regression")])  # fmt: skip
def test_an_unknown_metric_names_its_key(metric: str, task: str) -> None:
    with pytest.raises(ConfigError, match=r"models\.M\.metric"):
        check_name(metric, spec(task=task), "models.M.metric")
