"""Users' own trainers: found by name, and run over the blocks of a snapshot with our checkpoints and limits."""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import pickle
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servicectl import crash
from servicectl.errors import ConfigError, ServicectlError
from servicectl.training.spec import TrainingSpec

if TYPE_CHECKING:
    from servicectl.training.blocks import Block, Learnt, Plan
    from servicectl.training.checkpoint import Checkpoints
    from servicectl.training.parquet import SnapshotFile
    from servicectl.training.pressure import Patience

GROUP = "servicectl.trainers"
PREFIX = "trainer:"
_METHODS = ("prepare", "fit", "package")
_MIXIN = {"classification": "ClassifierMixin", "regression": "RegressorMixin"}
_AHEAD_BLOCKS = 6
_FIT_ROWS = 2_000_000  # between checkpoints


@dataclass
class _Stand:
    """Where the training stands; `own` is the trainer's state."""

    own: Any
    passed: int = 0
    pools: int = 0
    told: tuple[str, ...] = ()


def name_of(spec: TrainingSpec) -> str | None:
    """The name behind `estimator = "trainer:NAME"`; None for an ordinary estimator."""
    path = spec.estimator_path
    return path.removeprefix(PREFIX) if path.startswith(PREFIX) else None


def check_settings(spec: TrainingSpec) -> None:
    """Raises ConfigError for what a trainer cannot do: it is given its rows in blocks, and once."""
    name = name_of(spec)
    if spec.training == "memory":
        raise ConfigError(
            f'models.{spec.model_id}.training = "memory": the trainer {name!r} is given its rows in blocks',
            cure='set it to "auto" or "streaming"',
        )
    if spec.window_auto:
        raise ConfigError(
            f'models.{spec.model_id}.window = "auto" tries several windows in memory, which the trainer {name!r} cannot',
            cure="set a fixed window",
        )


def entry_point(spec: TrainingSpec) -> importlib.metadata.EntryPoint:
    """The entry point of a model's trainer, not loaded yet. Raises ConfigError, naming those that are there."""
    name = name_of(spec)
    there = {found.name: found for found in importlib.metadata.entry_points(group=GROUP)}
    if name is not None and name in there:
        return there[name]
    raise ConfigError(
        f"models.{spec.model_id}.estimator: there is no trainer {name!r}; installed: {', '.join(sorted(there)) or 'none'}",
        cure=f'install the package whose entry points "{GROUP}" have it beside servicectl',
    )


def distribution(spec: TrainingSpec) -> dict[str, str]:
    """Name and version of the package that a trainer comes in."""
    found = entry_point(spec).dist
    return {} if found is None else {found.name: found.version}


def loaded(spec: TrainingSpec) -> Any:
    """A model's trainer, made. Raises ConfigError for one that cannot be imported or lacks a method."""
    found = entry_point(spec)
    key = f"models.{spec.model_id}.estimator: the trainer {found.name!r} ({found.value})"
    try:
        thing = found.load()
        trainer = thing() if inspect.isclass(thing) else thing
    except Exception as error:
        raise ConfigError(
            f"{key} cannot be loaded: {type(error).__name__}: {error}", cure="install what it needs, or correct it"
        ) from error
    missing = [name for name in _METHODS if not callable(getattr(trainer, name, None))]
    if missing:
        raise ConfigError(f"{key} has no method {', '.join(missing)}", cure="see docs/trainers.md")
    return trainer


def needs(trainer: Any) -> tuple[str, ...]:
    """What a trainer says that its models need where they are served."""
    return tuple(str(name) for name in getattr(trainer, "needs", ()))


def learn(trainer: Any, file: SnapshotFile, plan: Plan, kept: Checkpoints) -> Learnt:
    """Run a trainer over the training rows, carried on from its last checkpoint."""
    from servicectl.training.ahead import Ahead
    from servicectl.training.blocks import Learnt, blocks_of_pass, passes_over, pools_in_pass, pools_of
    from servicectl.training.parquet import give_back
    from servicectl.training.pressure import Patience

    spec = file.spec
    passes = passes_over(plan.outline.rows_trained, spec)
    keep_every = pools_of(_FIT_ROWS, plan)
    patience = Patience(spec.serving_first)
    saves = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state: _Stand | None = kept.read("trainer")
        if state is None:
            with _named(spec, "prepare"):
                own = trainer.prepare(spec, _schema(plan, passes))
            state = _saved(kept, _Stand(own), spec)
        while state.passed < passes:
            pools = pools_in_pass(plan, spec, state.passed)
            with Ahead(blocks_of_pass(file.path, spec, plan, state.passed, state.pools), _AHEAD_BLOCKS) as blocks:
                while state.pools < pools:
                    count = min(keep_every, pools - state.pools)
                    part = _part(blocks, count, patience)
                    with _named(spec, "fit"):
                        state.own = trainer.fit(state.own, part)
                    for _ in part:
                        pass
                    give_back()
                    state.pools += count
                    state.told = tuple(dict.fromkeys([*state.told, *(_line(one.message) for one in caught)]))
                    caught.clear()
                    if state.pools == pools:
                        state.passed, state.pools, pools = state.passed + 1, 0, 0
                    state = _saved(kept, state, spec)
                    saves += 1
                    crash.point(f"training/trainer/{saves}")
        with _named(spec, "package"):
            estimator = trainer.package(state.own)
        told = tuple(dict.fromkeys([*state.told, *(_line(one.message) for one in caught)]))
    _check(estimator, spec)
    return Learnt(estimator, told, state.passed)


def _part(blocks: Iterator[Block], pools: int, patience: Patience) -> Iterator[Block]:
    """The blocks up to the end of so many pools."""
    for block in blocks:
        patience.wait()
        yield block
        pools -= block.ends_pool
        if pools == 0:
            return


def _schema(plan: Plan, passes: int) -> Any:
    from servicectl.training.trainer import Schema

    codes = () if plan.classes is None else tuple(plan.classes.codes.tolist())
    return Schema(plan.steps.columns, plan.outline.rows_trained, passes, codes, plan.shares)


def _saved(kept: Checkpoints, state: _Stand, spec: TrainingSpec) -> _Stand:
    try:
        saved: _Stand = kept.saved("trainer", state)
    except (pickle.PickleError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{spec.model_id}: the state of the trainer {name_of(spec)!r} cannot be pickled: {error}",
            cure="keep in it what can be written down and read again; see docs/trainers.md",
        ) from error
    if saved.own is None:
        raise ConfigError(
            f"{spec.model_id}: the trainer {name_of(spec)!r} gave back no state", cure="return it from prepare and fit"
        )
    return saved


def _check(estimator: object, spec: TrainingSpec) -> None:
    from sklearn.base import BaseEstimator, is_classifier, is_regressor

    does = is_classifier if spec.task == "classification" else is_regressor
    if not (isinstance(estimator, BaseEstimator) and callable(getattr(estimator, "predict", None)) and does(estimator)):
        raise ConfigError(
            f"{spec.model_id}: the trainer {name_of(spec)!r} packaged a {type(estimator).__name__}, which is no"
            f" estimator of scikit-learn's kind for {spec.task}",
            cure=f"make it a class({_MIXIN[spec.task]}, BaseEstimator), in this order, with fit and predict",
        )


@contextlib.contextmanager
def _named(spec: TrainingSpec, method: str) -> Iterator[None]:
    """What a trainer raises, with the trainer's name and the line."""
    try:
        yield
    except (ServicectlError, MemoryError, OSError):
        raise  # of ours, or what the machine lacks: told elsewhere
    except Exception as error:
        at = _last_line(traceback.extract_tb(error.__traceback__))
        raise ServicectlError(
            f"{spec.model_id}: the trainer {name_of(spec)!r} failed in {method}(){at}: {type(error).__name__}: {error}",
            cure="correct the trainer; what was learnt up to its last checkpoint is kept",
        ) from error


def _last_line(trace: Sequence[traceback.FrameSummary]) -> str:
    return f" at {Path(trace[-1].filename).name}:{trace[-1].lineno}" if trace else ""


def _line(message: object) -> str:
    return str(message).partition("\n")[0]
