"""How good a model is on given rows: scikit-learn's figures, computed from predictions made once.

The named metrics equal scikit-learn's (f1 with absent classes left out and zero where undefined; log_loss clipped at
float64's epsilon, a class that the model does not know counting as probability zero). Any other scorer name of
scikit-learn works too, by asking the model again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servicectl.errors import ConfigError
from servicectl.training.fit import LABELS_ATTRIBUTE
from servicectl.training.frame import Frames, Rows
from servicectl.training.spec import TrainingSpec

Mask = NDArray[np.bool_]
LOWER_IS_BETTER = frozenset({"mae", "rmse", "log_loss"})


class Unusable(Exception):
    """A model that cannot be measured on these rows; the text says why."""


@dataclass(frozen=True)
class Outputs:
    """One model's answers on the held-out rows.

    `truth` and `predicted` are codes of one vocabulary (classification) or the numbers themselves (regression).
    `truth_probability` is what the model gave to the true class, `positive_score` its score of the greater of two.
    """

    model: Any
    frame: Any
    truth: NDArray[Any]
    predicted: NDArray[Any]
    own_truth: NDArray[Any]  # the truth as this model codes it, for scikit-learn's scorers; -1: a class it never saw
    truth_probability: NDArray[np.float64] | None = None
    positive_score: NDArray[np.float64] | None = None


def outputs(model: Any, rows: Rows, spec: TrainingSpec) -> Outputs:
    """Ask a model for all rows at once. Raises Unusable if it fails or answers anything that is not finite."""
    frame = rows.frame()
    try:
        raw = _of_all(model, "predict", frame)
    except Exception as error:
        raise Unusable(f"it cannot predict these rows: {type(error).__name__}: {_line(error)}") from error
    if raw.shape != (len(rows),) or raw.dtype.kind not in "iufb":
        raise Unusable(f"it predicts {raw.dtype} of shape {raw.shape}, not one number per row")
    if not np.isfinite(raw).all():
        raise Unusable(f"{int((~np.isfinite(raw)).sum())} of its {len(rows)} predictions are NaN or infinite")
    if spec.task == "regression":
        return Outputs(model, frame, rows.labels, raw.astype(np.float64), rows.labels)
    return _classified(model, frame, raw, rows)


def _classified(model: Any, frame: Any, raw: NDArray[Any], rows: Rows) -> Outputs:
    classes = getattr(model, LABELS_ATTRIBUTE, None)
    if classes is None and rows.labels.dtype == object:
        raise Unusable("it predicts numbers, the labels are text, and it does not say which number means which label")
    try:
        decoded = raw.astype(np.float64) if classes is None else _labels(classes, rows)[_places(raw, len(classes))]
    except (IndexError, ValueError):
        raise Unusable("its predictions do not mean labels of this kind") from None
    # By distinct labels, never row by row: the rows may be a million.
    vocabulary = np.unique(np.concatenate([np.unique(rows.labels), np.unique(decoded)]))
    truth = np.searchsorted(vocabulary, rows.labels).astype(np.int32)
    predicted = np.searchsorted(vocabulary, decoded).astype(np.int32)
    known = getattr(model, "classes_", None)
    if known is None:
        return Outputs(model, frame, truth, predicted, rows.labels)
    known_labels = (
        np.asarray(known, dtype=np.float64) if classes is None else _labels([classes[int(c)] for c in known], rows)
    )
    column = {label: number for number, label in enumerate(known_labels.tolist())}
    position = np.array([column.get(label, -1) for label in vocabulary.tolist()], dtype=np.int32)[truth]
    own_truth = np.where(position >= 0, np.asarray(known)[position], -1)
    probabilities = _asked(model, "predict_proba", frame)
    truth_probability = positive_score = None
    if probabilities is not None and probabilities.ndim == 2:
        truth_probability = np.where(position >= 0, probabilities[np.arange(len(rows)), position], 0.0)
        if probabilities.shape[1] == 2:
            positive_score = probabilities[:, 1]
    elif (decision := _asked(model, "decision_function", frame)) is not None and decision.ndim == 1:
        positive_score = decision
    binary = len(vocabulary) == 2 and len(column) == 2 and all(label in column for label in vocabulary.tolist())
    return Outputs(model, frame, truth, predicted, own_truth, truth_probability, positive_score if binary else None)


def _places(raw: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Predicted codes as places in a list of labels. Raises IndexError for one that is no place."""
    places = raw.astype(np.int64)
    if (places < 0).any() or (places >= count).any():
        raise IndexError("a code without a label")
    return places


def _labels(values: list[Any], rows: Rows) -> NDArray[Any]:
    return np.array(values, dtype=rows.labels.dtype)


def _asked(model: Any, question: str, frame: Any) -> NDArray[np.float64] | None:
    # A model may own the method and still refuse it, as SGDClassifier does for hinge loss.
    try:
        answer = _of_all(model, question, frame).astype(np.float64)
    except (AttributeError, NotImplementedError, ValueError):
        return None
    return answer if np.isfinite(answer).all() else None


def _of_all(model: Any, question: str, frame: Any) -> NDArray[Any]:
    ask = getattr(model, question)
    if isinstance(frame, Frames):
        return np.concatenate([np.asarray(ask(part)) for part in frame])
    return np.asarray(ask(frame))


def measure(metric: str, answers: Outputs, keep: Mask) -> float | None:
    """One metric over the rows that `keep` marks; None where it is undefined there (one class, no probabilities)."""
    known = _METRICS.get(metric)
    value = _scored(metric, answers, keep) if known is None else known(answers, keep)
    return value if value is not None and np.isfinite(value) else None


def measure_all(answers: Outputs, spec: TrainingSpec, also: tuple[str, ...] = ()) -> dict[str, float]:
    """Every metric of the task that is defined, and those named in `also`."""
    everything = np.ones(len(answers.truth), dtype=np.bool_)
    found = {name: measure(name, answers, everything) for name in (*_BY_TASK[spec.task], *also)}
    return {name: value for name, value in found.items() if value is not None}


def check_known(metric: str, key: str) -> None:
    """Raises ConfigError for a metric that has to ask the model again for parts of the rows, which blocks do not allow."""
    if metric not in _METRICS:
        raise ConfigError(
            f"{key}: {metric!r} needs all held-out rows in memory, and they are too many",
            cure=f"choose one of {', '.join(_METRICS)}, or set training.max_rows",
        )


def check_name(metric: str, spec: TrainingSpec, key: str) -> None:
    """Raises ConfigError for a metric that nobody knows, or one of the other task."""
    if metric in _BY_TASK[spec.task]:
        return
    from sklearn.metrics import get_scorer_names

    if metric in _METRICS or metric not in get_scorer_names():
        raise ConfigError(
            f"{key}: {metric!r} is no metric for {spec.task}",
            cure=f"choose one of {', '.join(_BY_TASK[spec.task])}, or a scorer name of scikit-learn",
        )


def better(metric: str, challenger: float, champion: float) -> float:
    """How much better the challenger is, in units of the metric; negative: worse."""
    return champion - challenger if metric in LOWER_IS_BETTER else challenger - champion


def _accuracy(answers: Outputs, keep: Mask) -> float | None:
    return float((answers.truth[keep] == answers.predicted[keep]).mean()) if keep.any() else None


def _f1_per_class(answers: Outputs, keep: Mask) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    truth, predicted = answers.truth[keep], answers.predicted[keep]
    size = int(max(answers.truth.max(), answers.predicted.max())) + 1
    supports = np.bincount(truth, minlength=size)
    either = supports + np.bincount(predicted, minlength=size)
    hits = np.bincount(truth[truth == predicted], minlength=size)
    present = either > 0
    return 2 * hits[present] / either[present], supports[present]


def _f1_macro(answers: Outputs, keep: Mask) -> float | None:
    return float(_f1_per_class(answers, keep)[0].mean()) if keep.any() else None


def _f1_weighted(answers: Outputs, keep: Mask) -> float | None:
    if not keep.any():
        return None
    scores, supports = _f1_per_class(answers, keep)
    return float(np.average(scores, weights=supports))


def _roc_auc(answers: Outputs, keep: Mask) -> float | None:
    """The rank sum of the positive rows (Mann-Whitney), ties counted half."""
    if answers.positive_score is None:
        return None
    from scipy.stats import rankdata

    positive = answers.truth[keep] == 1
    count = int(positive.sum())
    others = len(positive) - count
    if count == 0 or others == 0:
        return None
    ranks = rankdata(answers.positive_score[keep])
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def _log_loss(answers: Outputs, keep: Mask) -> float | None:
    if answers.truth_probability is None or not keep.any():
        return None
    smallest = float(np.finfo(np.float64).eps)
    return float(-np.log(np.clip(answers.truth_probability[keep], smallest, 1 - smallest)).mean())


def _r2(answers: Outputs, keep: Mask) -> float | None:
    truth = answers.truth[keep]
    spread = float(((truth - truth.mean()) ** 2).sum()) if len(truth) else 0.0
    if spread == 0:
        return None
    return 1 - float(((truth - answers.predicted[keep]) ** 2).sum()) / spread


def _mae(answers: Outputs, keep: Mask) -> float | None:
    return float(np.abs(answers.truth[keep] - answers.predicted[keep]).mean()) if keep.any() else None


def _rmse(answers: Outputs, keep: Mask) -> float | None:
    return float(np.sqrt(((answers.truth[keep] - answers.predicted[keep]) ** 2).mean())) if keep.any() else None


def _scored(metric: str, answers: Outputs, keep: Mask) -> float | None:
    from sklearn.metrics import get_scorer

    if not keep.any():
        return None
    try:
        return float(get_scorer(metric)(answers.model, answers.frame[keep], answers.own_truth[keep]))
    except (ValueError, AttributeError):  # undefined on these rows, or for this model
        return None


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


_METRICS: dict[str, Callable[[Outputs, Mask], float | None]] = {
    "accuracy": _accuracy,
    "f1_macro": _f1_macro,
    "f1_weighted": _f1_weighted,
    "roc_auc": _roc_auc,
    "log_loss": _log_loss,
    "r2": _r2,
    "mae": _mae,
    "rmse": _rmse,
}
_BY_TASK = {
    "classification": ("accuracy", "f1_macro", "f1_weighted", "roc_auc", "log_loss"),
    "regression": ("r2", "mae", "rmse"),
}
