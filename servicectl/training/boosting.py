"""XGBoost: the same estimators in memory, and from external memory when a snapshot is too large.

From external memory: the training rows go, preprocessed, into XGBoost's own pages of quantile bins (one byte per value)
on disk, from which each round of boosting reads them again. Progress is the booster's bytes, saved every few rounds;
every run continues from the re-read bytes, so that an interrupted one gives the same model (see `checkpoint`).
Held in memory for each row: its label, its gradients and its place in the tree; not its features.
"""

from __future__ import annotations

import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray

from servicectl import crash
from servicectl.errors import BadData, ConfigError
from servicectl.training.blocks import Learnt, Plan, features_and_labels
from servicectl.training.checkpoint import Checkpoints
from servicectl.training.fit import estimator_of, explained
from servicectl.training.parquet import Piece, SnapshotFile, give_back
from servicectl.training.pressure import Patience
from servicectl.training.spec import TrainingSpec

_PAGE_BYTES = 16 << 20
_PARTS = 5  # between which the booster is saved; each goes over all rows once more to know where it stood
_MAX_BIN = 256  # XGBoost's own default
_UNUSED = re.compile(r"Parameters: \{ (.*?) \} are not used")


@dataclass
class Boosting:
    """Where the training stands: rounds done, and the booster as UBJSON."""

    rounds: int = 0
    model: bytes = b""


def check_params(spec: TrainingSpec, *, in_blocks: bool) -> None:
    """Raises ConfigError for params that XGBoost does not know or take: it would tell only in the fit, or after it."""
    estimator = estimator_of(spec)
    key = f"models.{spec.model_id}.params"
    if getattr(estimator, "early_stopping_rounds", None):
        raise ConfigError(
            f"{key}: early_stopping_rounds needs rows to stop by, and the held-out ones are the gate's",
            cure="set n_estimators instead",
        )
    estimator.set_params(n_estimators=1)
    rows, labels = np.arange(8.0).reshape(4, 2), np.array([0, 1, 0, 1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if in_blocks:
                matrix = xgboost.QuantileDMatrix(rows, labels, nthread=spec.threads)
                xgboost.Booster(_params(estimator, 2, spec), [matrix]).update(matrix, 0)
            else:
                estimator.fit(rows, labels)
        except (ValueError, TypeError) as error:  # XGBoostError is a ValueError
            how = "when it learns in blocks" if in_blocks else "as they are"
            raise ConfigError(
                f"{key}: xgboost does not take them {how}: {_plain(error)}", cure="correct its params"
            ) from None
    for warning in caught:
        if found := _UNUSED.search(str(warning.message)):
            raise ConfigError(f"{key}: xgboost has no use for {found.group(1)}", cure="correct its params")


def check_codes(codes: NDArray[np.int64], spec: TrainingSpec) -> None:
    """Raises BadData for labels that are not 0, 1, 2 ...: XGBoost learns no others."""
    if codes.tolist() != list(range(len(codes))):
        found = ", ".join(map(str, codes[:5].tolist()))
        raise BadData(
            f"{spec.model_id}: xgboost learns the classes 0, 1, 2 ... only; {spec.label!r} holds {found}",
            cure="give that label as text, which is coded and its codes told, or number it from 0 in a query",
        )


def learn(file: SnapshotFile, plan: Plan, kept: Checkpoints) -> Learnt:
    """Boost over the training rows, their pages beside the checkpoints, carried on from the last of these."""
    spec, scratch = file.spec, kept.folder / "pages"
    estimator = estimator_of(spec)
    classes = 0 if plan.classes is None else len(plan.classes.values)
    params, rounds = _params(estimator, classes, spec), int(estimator.get_num_boosting_rounds())
    every = math.ceil(rounds / _PARTS)
    state: Boosting = kept.read("boosting") or kept.saved("boosting", Boosting())
    saves = 0
    patience = Patience(spec.serving_first)
    with warnings.catch_warnings(record=True) as caught, explained(spec, plan.outline.rows_trained):
        warnings.simplefilter("always")
        if state.rounds < rounds:
            shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
            scratch.mkdir()
            pages = _Pages(file, plan, scratch, patience)
            matrix = xgboost.ExtMemQuantileDMatrix(
                pages, missing=np.nan, nthread=spec.threads, max_bin=params.get("max_bin") or _MAX_BIN
            )
            while state.rounds < rounds:
                booster = xgboost.Booster(params, [matrix], model_file=bytearray(state.model) or None)
                until = min(rounds, state.rounds + every)
                for number in range(state.rounds, until):
                    patience.wait()
                    booster.update(matrix, number)
                state = kept.saved("boosting", Boosting(until, bytes(booster.save_raw("ubj"))))
                del booster
                saves += 1
                crash.point(f"training/boosting/{saves}")
            del matrix, pages
        shutil.rmtree(scratch, ignore_errors=True)
        estimator.load_model(bytearray(state.model))
    return Learnt(estimator, tuple(dict.fromkeys(_plain(one.message) for one in caught)))


def _params(estimator: Any, classes: int, spec: TrainingSpec) -> dict[str, Any]:
    """XGBoost's own parameters, as its estimators make them when they are fitted."""
    params = {name: value for name, value in estimator.get_xgb_params().items() if value is not None}
    params.pop("n_jobs", None)
    if classes > 2:
        if params.get("objective") != "multi:softmax":
            params["objective"] = "multi:softprob"
        params["num_class"] = classes
    # Else each part would draw the rows and columns of the first one again.
    return params | {"nthread": spec.threads, "seed_per_iteration": True}


class _Pages(xgboost.DataIter):  # type: ignore[misc] # xgboost is not read by the type checker
    """The training rows in order, a few row groups at a time; XGBoost goes over them several times."""

    def __init__(self, file: SnapshotFile, plan: Plan, folder: Path, patience: Patience) -> None:
        self._file, self._plan, self._patience = file, plan, patience
        self._pages = list(_grouped(plan.outline.training, _PAGE_BYTES // (4 * plan.steps.width)))
        self._next = 0
        super().__init__(cache_prefix=str(folder / "pages"), on_host=False)

    def next(self, input_data: Callable[..., Any]) -> bool:
        if self._next == len(self._pages):
            return False
        self._patience.wait()
        pieces = self._pages[self._next]
        x = np.empty((sum(map(len, pieces)), self._plan.steps.width), dtype=np.float32)
        labels, start = [], 0
        for piece in pieces:
            labels.append(features_and_labels(self._file, self._plan, piece, x[start : start + len(piece)]))
            start += len(piece)
        input_data(data=x, label=np.concatenate(labels))
        give_back()
        self._next += 1
        return True

    def reset(self) -> None:
        self._next = 0


def _grouped(pieces: Sequence[Piece], most: int) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    for piece in pieces:
        if group and sum(map(len, group)) + len(piece) > most:
            yield group
            group = []
        group.append(piece)
    yield group


def _plain(error: object) -> str:
    """XGBoost's message without its clock, its source lines and its stack."""
    text = str(error).strip().partition("\nStack trace")[0]
    return " ".join(re.sub(r"\[\d\d:\d\d:\d\d\] (WARNING: )?\S+?:\d+: ", "", text).split())
