"""Training on more rows than fit in memory: any scikit-learn estimator with `partial_fit`, several passes over `blocks`.

One thread reads, imputes, scales and shuffles ahead of the fit. Progress is saved every few million rows; see
`checkpoint` for why every run reads it back.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servicectl import crash
from servicectl.errors import ConfigError
from servicectl.training import child, trainers
from servicectl.training.ahead import Ahead
from servicectl.training.blocks import (
    Block,
    Learnt,
    Plan,
    block_rows,
    blocks_of_pass,
    identity,
    passes_over,
    pools_of,
    surveyed,
)
from servicectl.training.checkpoint import Checkpoints
from servicectl.training.fit import LABELS_ATTRIBUTE, estimator_of, explained, libraries, of_xgboost, written
from servicectl.training.frame import moment
from servicectl.training.parquet import SnapshotFile, give_back
from servicectl.training.pickling import dumps
from servicectl.training.pressure import Patience
from servicectl.training.servable import refuse_absent
from servicectl.training.spec import CurvePoint, Trained, TrainingSpec
from servicectl.training.window import choose_window_in_blocks

if TYPE_CHECKING:
    from servicectl.training.floor import TrainRequest

_AHEAD_BLOCKS = 6
_FIT_ROWS = 2_000_000  # between checkpoints of the fit
_CURVE_POINTS = 200
_LEAST_BETWEEN_SCORES = 16  # blocks


@dataclass
class Fitting:
    """Where the fit stands."""

    estimator: Any
    passed: int = 0
    pools: int = 0
    blocks: int = 0
    rows: int = 0
    curve: list[CurvePoint] = field(default_factory=list)
    told: tuple[str, ...] = ()


def train_in_blocks(request: TrainRequest, estimate_mb: int) -> Trained:
    """The child's side of `floor.train` for training = "streaming"."""
    started = time.monotonic()
    spec, folder, snapshot = request.spec, Path(request.folder), Path(request.snapshot)
    learner = _learner(request)
    file = SnapshotFile(snapshot, spec)
    kept = Checkpoints(Path(request.checkpoints or folder / "checkpoints"), identity(file, spec))
    choice = choose_window_in_blocks(file, kept) if spec.window_auto else None
    plan = surveyed(file, kept, 1.0 if choice is None else choice.share)
    learnt = learner(file, plan, kept)
    model = dumps(_published(plan, learnt.estimator, spec))
    crash.point("training/model/before")
    outline, classes = plan.outline, plan.classes
    return Trained(
        model=written(folder / "model.pkl", model),
        baseline=written(folder / "baseline.json", plan.baseline),
        sample=written(folder / "sample.parquet", plan.sample),
        rows_trained=outline.rows_trained,
        trained_from=moment(outline.trained_from),
        trained_until=moment(outline.trained_until),
        heldout_from=moment(outline.heldout_from),
        seconds=round(time.monotonic() - started, 3),
        libraries=libraries(spec),
        estimator=spec.estimator_path,
        label_codes=None if classes is None else classes.names,
        warnings=learnt.told,
        training="streaming",
        estimate_mb=estimate_mb,
        passes=learnt.passes,
        curve=learnt.curve,
        window_share=None if choice is None else choice.share,
        window_scores={} if choice is None else choice.scores,
    )


def _learner(request: TrainRequest) -> Callable[[SnapshotFile, Plan, Checkpoints], Learnt]:
    """What learns the blocks. Whatever can be refused by name is refused here, before the rows are read."""
    spec = request.spec
    if (name := trainers.name_of(spec)) is not None:
        trainer = trainers.loaded(spec)
        if request.libraries is not None:
            refuse_absent(f"a model of the trainer {name!r}", trainers.needs(trainer), request.libraries)
        return lambda file, plan, kept: trainers.learn(trainer, file, plan, kept)
    if of_xgboost(estimator_of(spec)):
        from servicectl.training import boosting

        boosting.check_params(spec, in_blocks=True)

        def boosted(file: SnapshotFile, plan: Plan, kept: Checkpoints) -> Learnt:
            if plan.classes is not None:
                boosting.check_codes(plan.classes.codes, spec)
            return boosting.learn(file, plan, kept)

        return boosted
    estimator_with_partial_fit(spec)

    def streamed(file: SnapshotFile, plan: Plan, kept: Checkpoints) -> Learnt:
        fitting = fitted(file, plan, kept)
        return Learnt(fitting.estimator, fitting.told, fitting.passed, tuple(fitting.curve))

    return streamed


def estimator_with_partial_fit(spec: TrainingSpec) -> Any:
    """Raises ConfigError, naming what could be used instead, for an estimator that only learns all rows at once."""
    estimator = estimator_of(spec)
    if not hasattr(estimator, "partial_fit"):
        raise ConfigError(
            f"models.{spec.model_id}: {spec.estimator_path} has no partial_fit, so it cannot be trained in blocks",
            cure=f"set models.{spec.model_id}.estimator to {alternatives(spec)}; or use fewer rows with training.max_rows",
        )
    return estimator


def alternatives(spec: TrainingSpec) -> str:
    """Estimators that learn in blocks, for messages."""
    kind = "Classifier" if spec.task == "classification" else "Regressor"
    return f"sklearn.linear_model.SGD{kind}, sklearn.neural_network.MLP{kind} or xgboost.XGB{kind}"


def fitted(file: SnapshotFile, plan: Plan, kept: Checkpoints) -> Fitting:
    spec = file.spec
    state: Fitting | None = kept.read("fit")
    if state is None:
        state = kept.saved("fit", Fitting(_weighted(estimator_with_partial_fit(spec), plan)))
    passes = passes_over(plan.outline.rows_trained, spec)
    blocks_in_pass = math.ceil(plan.outline.rows_trained / block_rows(plan.steps.width))
    every_blocks = max(_LEAST_BETWEEN_SCORES, passes * blocks_in_pass // _CURVE_POINTS)
    keep_every = pools_of(_FIT_ROWS, plan)
    patience = Patience(spec.serving_first)
    saves = 0
    with warnings.catch_warnings(record=True) as caught, explained(spec, plan.outline.rows_trained):
        warnings.simplefilter("always")
        while state.passed < passes:
            with Ahead(blocks_of_pass(file.path, spec, plan, state.passed, state.pools), _AHEAD_BLOCKS) as blocks:
                for block in blocks:
                    patience.wait()
                    _learn(state, block, plan, scored=state.blocks % every_blocks == 0 and state.blocks > 0)
                    if caught:
                        told = [str(warning.message).split("\n")[0] for warning in caught]
                        state.told = tuple(dict.fromkeys([*state.told, *told]))
                        caught.clear()
                    if block.ends_pool:
                        state.pools += 1
                        give_back()
                        if state.pools % keep_every == 0:
                            state = kept.saved("fit", state)
                            saves += 1
                            crash.point(f"training/fit/{saves}")
            state.passed, state.pools = state.passed + 1, 0
            state = kept.saved("fit", state)
            saves += 1
            crash.point(f"training/fit/{saves}")
    return state


def _learn(state: Fitting, block: Block, plan: Plan, *, scored: bool) -> None:
    if scored:
        # On rows that are about to be learnt: in the first pass, rows never seen.
        score = round(float(state.estimator.score(block.x, block.y)), 6)
        point = CurvePoint(state.passed + 1, state.rows, score if math.isfinite(score) else None)
        state.curve.append(point)
        child.tell(f"pass {point.passed}, {point.rows:,} rows learnt: score {score:.4f} on rows about to be learnt")
    if plan.classes is None:
        state.estimator.partial_fit(block.x, block.y)
    else:
        state.estimator.partial_fit(block.x, block.y, classes=plan.classes.codes)
    state.blocks += 1
    state.rows += len(block.y)


def _weighted(estimator: Any, plan: Plan) -> Any:
    """partial_fit refuses class_weight = "balanced", because it cannot know the shares; the survey does."""
    if plan.classes is not None and getattr(estimator, "class_weight", None) == "balanced":
        weights = {
            int(code): 1 / (len(plan.shares) * share)
            for code, share in zip(plan.classes.codes, plan.shares, strict=True)
        }
        estimator.set_params(class_weight=weights)
    return estimator


def _published(plan: Plan, estimator: Any, spec: TrainingSpec) -> Any:
    from sklearn.pipeline import Pipeline

    pipeline = Pipeline([("columns", plan.steps.fitted(spec, plan.outline)), ("estimator", estimator)])
    if plan.classes is not None and plan.classes.originals is not None:
        setattr(pipeline, LABELS_ATTRIBUTE, plan.classes.originals)
    return pipeline
