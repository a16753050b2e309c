"""Fitting: a stock scikit-learn Pipeline that takes its columns by name, and a plain pickle of it."""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import platform
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from servicectl.errors import BadData, ConfigError
from servicectl.files import sha256_of, write_atomically
from servicectl.training import trainers
from servicectl.training.baseline import baseline
from servicectl.training.columns import transformer
from servicectl.training.frame import Rows, label_text, moment, read, sample_of, split
from servicectl.training.labels import coded_classes
from servicectl.training.mode import choose
from servicectl.training.spec import ProductFile, Trained, TrainingSpec

if TYPE_CHECKING:
    from servicectl.training.floor import TrainRequest

PICKLE_PROTOCOL = 5
LABELS_ATTRIBUTE = "label_classes_"
"""Set on the Pipeline where labels are not whole numbers: the original labels, by the code that is predicted."""


@dataclass(frozen=True)
class CodedLabels:
    """Labels as numbers that can be served. `classes` holds the originals by code; None: the numbers are the labels."""

    codes: NDArray[Any]
    classes: list[Any] | None


def train(request: TrainRequest) -> Trained:
    """The child's side of `floor.train`."""
    started = time.monotonic()
    spec, folder = request.spec, Path(request.folder)
    mode, needed_mb = choose(Path(request.snapshot), spec)
    if mode == "streaming":
        from servicectl.training.stream import train_in_blocks

        return train_in_blocks(request, needed_mb)
    parts = split(read(Path(request.snapshot), spec), spec)
    rows, share, scores = parts.training, None, dict[str, float]()
    if spec.window_auto:
        from servicectl.training.window import choose_window, newest

        choice = choose_window(rows, spec)
        rows, share, scores = newest(rows, choice.share), choice.share, choice.scores
    pipeline, told, codes = fitted_pipeline(rows, spec)
    model = written(folder / "model.pkl", pickle.dumps(pipeline, protocol=PICKLE_PROTOCOL))
    statistics = baseline(rows, spec, codes)
    return Trained(
        model=model,
        baseline=written(folder / "baseline.json", msgspec.json.encode(statistics)),
        rows_trained=len(rows),
        trained_from=moment(rows.times[0]),
        trained_until=moment(rows.times[-1]),
        heldout_from=moment(parts.heldout.times[0]),
        seconds=round(time.monotonic() - started, 3),
        libraries=libraries(spec),
        estimator=spec.estimator_path,
        label_codes=codes,
        warnings=told,
        window_share=share,
        window_scores=scores,
        sample=written(folder / "sample.parquet", sample_of(Path(request.snapshot), rows, spec)),
        estimate_mb=needed_mb,
    )


def fitted_pipeline(rows: Rows, spec: TrainingSpec) -> tuple[Any, tuple[str, ...], dict[str, int] | None]:
    """The model as it is published, what scikit-learn warned of, and what a served number means (text labels)."""
    coded = coded_labels(rows, spec)
    pipeline = _pipeline(rows, spec)
    if of_xgboost(pipeline.named_steps["estimator"]):
        from servicectl.training import boosting

        boosting.check_params(spec, in_blocks=False)
        if spec.task == "classification":
            boosting.check_codes(np.unique(coded.codes), spec)
    told = _fit(pipeline, rows, coded, spec)
    if coded.classes is None:
        return pipeline, told, None
    setattr(pipeline, LABELS_ATTRIBUTE, coded.classes)
    return pipeline, told, {label_text(value): code for code, value in enumerate(coded.classes)}


def coded_labels(rows: Rows, spec: TrainingSpec) -> CodedLabels:
    """Given training rows, their labels as served numbers. Raises BadData for classification with one class only."""
    if spec.task == "regression":
        return CodedLabels(rows.labels, None)
    classes = coded_classes(sorted(set(rows.labels.tolist())), len(rows), spec)
    return CodedLabels(classes.encode(rows.labels), classes.originals)


def libraries(spec: TrainingSpec) -> dict[str, str]:
    """The versions a model is tied to: Python, what every model needs, and the library of its estimator."""
    versions = {"python": platform.python_version()}
    modules = {"scikit-learn": "sklearn", "numpy": "numpy", "scipy": "scipy", "pandas": "pandas"}
    root = spec.estimator_path.partition(".")[0]
    if trainers.name_of(spec) is not None:
        versions |= trainers.distribution(spec)
    elif root not in modules.values():
        modules[root] = root
    for name, module in modules.items():
        versions[name] = str(getattr(importlib.import_module(module), "__version__", "unknown"))
    return versions


def _pipeline(rows: Rows, spec: TrainingSpec) -> Any:
    from sklearn.pipeline import Pipeline

    def kind(name: str) -> str:
        if name not in spec.categorical:
            return "numeric"
        return "text" if rows.features[name].dtype == object else "coded"

    columns = transformer(spec, {name: kind(name) for name in spec.features})
    return Pipeline([("columns", columns), ("estimator", estimator_of(spec))])


def of_xgboost(estimator: object) -> bool:
    """Whether an estimator is XGBoost's own; xgboost is not imported for the answer."""
    return type(estimator).__module__.partition(".")[0] == "xgboost"


def estimator_of(spec: TrainingSpec) -> Any:
    """The unfitted estimator of a model. Raises ConfigError, naming the key, for one that does not work."""
    from sklearn.base import is_classifier, is_regressor

    path = spec.estimator_path
    key = f"models.{spec.model_id}.estimator"
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        cure = "write the full name, e.g. sklearn.ensemble.RandomForestClassifier"
        if module == "xgboost" and importlib.util.find_spec(module) is None:
            cure = "pip install 'servicectl[xgboost]'"
        raise ConfigError(f"{key}: there is no {path!r}", cure=cure) from None
    if not (isinstance(kind, type) and hasattr(kind, "fit") and hasattr(kind, "predict")):
        raise ConfigError(f"{key}: {path} is not an estimator", cure="name a class with fit and predict")
    params = dict(spec.params)
    if spec.estimator is None and spec.task == "classification":
        params.setdefault("max_iter", 1000)
    try:
        estimator = kind(**params)
        accepted = estimator.get_params(deep=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"models.{spec.model_id}.params: {path} does not take them: {error}", cure="correct its params"
        ) from None
    if "random_state" in accepted and "random_state" not in params:
        estimator.set_params(random_state=spec.seed)
    fits = is_classifier(estimator) if spec.task == "classification" else is_regressor(estimator)
    if not fits:
        raise ConfigError(
            f"{key}: {path} does not do {spec.task}",
            cure=f"name another estimator, or correct models.{spec.model_id}.task",
        )
    return estimator


def _fit(pipeline: Any, rows: Rows, coded: CodedLabels, spec: TrainingSpec) -> tuple[str, ...]:
    """Fit in place. Returns what scikit-learn warned of."""
    with warnings.catch_warnings(record=True) as caught, explained(spec, len(rows)):
        warnings.simplefilter("always")
        pipeline.fit(rows.frame(), coded.codes)
    return tuple(dict.fromkeys(str(warning.message).split("\n")[0] for warning in caught))


@contextlib.contextmanager
def explained(spec: TrainingSpec, rows: int) -> Iterator[None]:
    """What an estimator raises while it learns, as an error that names the key or the data."""
    from sklearn.utils._param_validation import InvalidParameterError

    try:
        yield
    except (InvalidParameterError, TypeError) as error:
        raise ConfigError(
            f"models.{spec.model_id}.params: {spec.estimator_path} does not take them: {error}",
            cure="correct its params",
        ) from None
    except ValueError as error:
        words = str(error).partition("\nStack trace")[0]  # of XGBoost
        if "bad_alloc" in words:
            raise MemoryError("std::bad_alloc") from None
        raise BadData(
            f"{spec.model_id}: {spec.estimator_path} could not be fitted on {rows} rows: {words}",
            cure=f"correct models.{spec.model_id}.params or choose another estimator",
        ) from None


def written(path: Path, content: bytes) -> ProductFile:
    """Write a product whole."""
    write_atomically(path, content)
    return ProductFile(str(path), sha256_of(path), len(content))
