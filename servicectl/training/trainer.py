"""The protocol of a user's own trainer: three methods, found by the entry point group `servicectl.trainers`.

    [project.entry-points."servicectl.trainers"]
    my-network = "my_package:MyNetwork"

and `models.X.estimator = "trainer:my-network"`. docs/trainers.md tells the whole of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from servicectl.training.blocks import Block
from servicectl.training.spec import TrainingSpec

__all__ = ["Block", "Schema", "State", "Trainer", "TrainingSpec"]

State = TypeVar("State")


@dataclass(frozen=True)
class Schema:
    """What the blocks hold, known from the survey of all training rows.

    `columns` names the columns of `Block.x`: each number under its own name (imputed and scaled), each category as
    "feature=value" (0 or 1). `codes` are the values of `Block.y`, int64, with `shares` of the training rows;
    both are empty for a regression, whose `Block.y` is float64.
    """

    columns: tuple[str, ...]
    rows: int
    passes: int
    codes: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()

    @property
    def classes(self) -> NDArray[Any]:
        """The codes as an array, as scikit-learn's `classes_`."""
        import numpy as np

        return np.array(self.codes, dtype=np.int64)


class Trainer(Protocol[State]):
    """Made without arguments, once per training, in the confined child process that trains.

    A trainer may have an attribute `needs`, a tuple of module names that whoever serves its models must have; it is
    held against serving.libraries before the rows are read.
    """

    def prepare(self, spec: TrainingSpec, schema: Schema) -> State:
        """The state before anything is learnt. `spec.params` are the model's params, `spec.seed` is its seed.

        A state must survive pickling: between two calls of `fit` it is written down and read again.
        """

    def fit(self, state: State, blocks: Iterable[Block]) -> State:
        """Learn from blocks of about 16,000 rows and give back the state; called again and again, pass by pass.

        Blocks are read ahead while this runs; those that are left over are passed over.
        """

    def package(self, state: State) -> object:
        """A fitted estimator of scikit-learn's kind (BaseEstimator with ClassifierMixin or RegressorMixin).

        Its `predict` takes an array like `Block.x` and answers one number per row: a code, or the value itself. It is
        published as the last step of a stock Pipeline, pickled.
        """
