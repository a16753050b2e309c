"""How far back to learn from: several windows fitted and scored on the newest training rows, the best one taken.

No fixed window is right: where the world changes, the newest rows beat all history, and where it does not, all history
beats them. The validation slice lies before the held-out rows, which the gate judges by and which nothing here sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from servicectl.errors import BadData, ConfigError
from servicectl.training import evidence
from servicectl.training.checkpoint import Checkpoints
from servicectl.training.fit import fitted_pipeline
from servicectl.training.frame import Rows
from servicectl.training.heldout import hashed
from servicectl.training.metrics import Mask, Outputs, Unusable, better, check_name, measure, outputs
from servicectl.training.mode import rows_that_fit
from servicectl.training.parquet import Outline, SnapshotFile, give_back, times
from servicectl.training.spec import TrainingSpec
from servicectl.training.survey import feature_values, label_values

SHARES = (1.0, 0.6, 0.3, 0.1)
_VALIDATION = 0.2
_LEAST_ROWS = 50
_SAMPLE_ROWS = 100_000
_ONE_STANDARD_ERROR = 0.16  # the chance that one is exceeded upwards


@dataclass(frozen=True)
class Choice:
    """`share` of the newest training rows is best; `scores`: the main metric of each share that could be fitted."""

    share: float
    scores: dict[str, float]


def newest(rows: Rows, share: float) -> Rows:
    """The newest share of rows; rows of one instant stay together."""
    start = rows.times[len(rows) - max(1, int(len(rows) * share))]
    return rows.part(slice(int(np.searchsorted(rows.times, start, side="left")), None))


def choose_window(rows: Rows, spec: TrainingSpec) -> Choice:
    """Given the training rows. A share with too few rows or one class only is left out; all rows, if none is left."""
    check_name(spec.main_metric, spec, f"models.{spec.model_id}.metric")
    start = rows.times[min(int(len(rows) * (1 - _VALIDATION)), len(rows) - 1)]
    until = start - np.timedelta64(round(spec.embargo_s * 1_000_000), "us")
    older = rows.part(slice(0, int(np.searchsorted(rows.times, until, side="left"))))
    validation = rows.part(slice(int(np.searchsorted(rows.times, start, side="left")), None))
    tried: dict[float, Outputs] = {}
    for share in SHARES:
        if len(older) > 0 and (share == 1 or len(older) * share >= _LEAST_ROWS):
            answers = _answers(newest(older, share), validation, spec)
            if answers is not None:
                tried[share] = answers
    everything = np.ones(len(validation), dtype=np.bool_)
    measured = {share: measure(spec.main_metric, answers, everything) for share, answers in tried.items()}
    scores = {share: score for share, score in measured.items() if score is not None}
    sure = [
        share for share in scores if share == max(scores) or _is_better(share, max(scores), tried, validation, spec)
    ]
    best = max(sure, key=lambda share: better(spec.main_metric, scores[share], 0.0)) if sure else 1.0
    return Choice(best, {f"{share:g}": round(score, 6) for share, score in scores.items()})


def _is_better(share: float, longest: float, tried: dict[float, Outputs], validation: Rows, spec: TrainingSpec) -> bool:
    """By more than a standard error, or the longer history stays: of equal windows, chance would pick a short one."""

    def difference(keep: Mask) -> float | None:
        ours, theirs = (measure(spec.main_metric, tried[one], keep) for one in (share, longest))
        return None if ours is None or theirs is None else better(spec.main_metric, ours, theirs)

    blocks = evidence.time_blocks(validation.times)
    found = evidence.compare(difference, blocks, evidence.entity_groups(validation.entities), _ONE_STANDARD_ERROR)
    return found is not None and found.low > 0


def choose_window_in_blocks(file: SnapshotFile, kept: Checkpoints) -> Choice:
    """The choice of `choose_window`, made on training rows drawn evenly over time, as many as fit in memory.

    Rejected: a survey and several passes of all rows for each share, which is hours. Of a sample, long windows lose as
    much as short ones, so chance still favours the longer one.
    """
    spec = file.spec
    choice: Choice | None = kept.read("window")
    if choice is None:
        outline = file.outline()
        choice = kept.saved("window", choose_window(_even_sample(file, outline), spec))
    return choice


def _even_sample(file: SnapshotFile, outline: Outline) -> Rows:
    spec = file.spec
    most = min(_SAMPLE_ROWS, rows_that_fit(outline.width, spec))
    if most < _LEAST_ROWS:
        raise ConfigError(
            f'models.{spec.model_id}.window = "auto": not even {_LEAST_ROWS} rows fit in memory to choose by',
            cure="raise training.memory_mb, or set a fixed window",
        )
    every = math.ceil(outline.rows_trained / most)
    columns = [spec.entity_column, spec.time_column, spec.label, *spec.features]
    parts, seen = [], 0
    for piece in outline.training:
        picked = np.arange(-seen % every, len(piece), every)
        table = file.table(piece, columns).take(pa.array(picked))
        features = {name: feature_values(table, name, outline) for name in spec.features}
        moments, entities = times(table.column(spec.time_column)), hashed(table.column(spec.entity_column))
        parts.append(Rows(moments, entities, label_values(table, file), features))
        seen += len(piece)
        give_back()
    return Rows(
        np.concatenate([part.times for part in parts]),
        np.concatenate([part.entities for part in parts]),
        np.concatenate([part.labels for part in parts]),
        {name: np.concatenate([part.features[name] for part in parts]) for name in spec.features},
    )


def _answers(rows: Rows, validation: Rows, spec: TrainingSpec) -> Outputs | None:
    try:
        return outputs(fitted_pipeline(rows, spec)[0], validation, spec)
    except (BadData, Unusable):
        return None
