"""What the gate looks at besides the main figure: named slices of rows, and how long one prediction takes."""

from __future__ import annotations

import operator
import re
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servicectl.errors import ConfigError
from servicectl.training.conditions import CONDITION
from servicectl.training.frame import Frames
from servicectl.training.metrics import Outputs

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_TIMES = 15


def chosen_rows(frame: Any, condition: str, key: str) -> NDArray[np.bool_]:
    """Which rows of a frame (or of frames, block by block) a condition like "age >= 60" or "city == 'Brno'" chooses.

    A row without the feature is in no slice. Raises ConfigError for what is no such condition.
    """
    found = CONDITION.fullmatch(condition)
    if found is None:
        raise ConfigError(
            f"{key}: {condition!r} is no condition", cure='write it like "age >= 60" or "city == \'Brno\'"'
        )
    if isinstance(frame, Frames):
        return np.concatenate([_chosen(part, found, key) for part in frame])
    return _chosen(frame, found, key)


def _chosen(frame: Any, condition: re.Match[str], key: str) -> NDArray[np.bool_]:
    name, told = condition["feature"], condition["value"]
    if name not in frame.columns:
        raise ConfigError(f"{key}: the model has no feature {name!r}", cure="name one of its features")
    column = frame[name]
    text = re.fullmatch(r"'(.*)'|\"(.*)\"", told)
    value: str | float = told
    if text is not None:
        value = text[1] if text[1] is not None else text[2]
    else:
        try:
            value = float(told)
        except ValueError:
            raise ConfigError(f"{key}: {told} is neither a number nor quoted text", cure="quote text") from None
    present = np.asarray(column.notna())
    chosen = np.zeros(len(column), dtype=np.bool_)
    try:
        chosen[present] = np.asarray(_OPERATORS[condition["operator"]](column[present], value), dtype=np.bool_)
    except TypeError:
        raise ConfigError(
            f"{key}: {name!r} cannot be compared with {told}", cure="compare numbers with numbers"
        ) from None
    return chosen


def predict_ms(answers: Outputs) -> float:
    """Processor time of one row's prediction, the median of some, in milliseconds: what Service B does per request."""
    frame = next(iter(answers.frame)) if isinstance(answers.frame, Frames) else answers.frame
    row = frame.head(1)
    answers.model.predict(row)
    took = []
    for _ in range(_TIMES):
        started = time.thread_time()
        answers.model.predict(row)
        took.append(time.thread_time() - started)
    return round(median(took) * 1000, 3)
