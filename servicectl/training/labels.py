"""Labels as numbers that can be served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servicectl.errors import BadData
from servicectl.training.frame import label_text
from servicectl.training.spec import TrainingSpec


@dataclass(frozen=True)
class CodedClasses:
    """The labels of a classification, in order; `own`: they are whole numbers, and their own codes."""

    values: list[Any]
    own: bool

    @property
    def codes(self) -> NDArray[np.int64]:
        return np.array(self.values, dtype=np.int64) if self.own else np.arange(len(self.values))

    @property
    def originals(self) -> list[Any] | None:
        """The labels by code; None: the numbers are the labels."""
        return None if self.own else self.values

    @property
    def names(self) -> dict[str, int] | None:
        """What a served number means, where labels are not whole numbers."""
        return None if self.own else {label_text(value): code for code, value in enumerate(self.values)}

    def encode(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Labels as codes; each must be among the values."""
        if self.own:
            return labels.astype(np.int64)
        position = {value: code for code, value in enumerate(self.values)}
        return np.array([position[value] for value in labels.tolist()], dtype=np.int64)


def coded_classes(values: list[Any], rows: int, spec: TrainingSpec) -> CodedClasses:
    """Given the distinct labels of training rows, in order. Raises BadData for one class only."""
    if len(values) < 2:
        raise BadData(
            f"{spec.model_id}: all {rows} training rows have the label {label_text(values[0])!r};"
            " one class cannot be told apart",
            cure=f"widen models.{spec.model_id}.window, or lower training.heldout_fraction",
        )
    return CodedClasses(values, own=all(isinstance(value, float) and value.is_integer() for value in values))
