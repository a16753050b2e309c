"""Can Service B serve this model, and will its numbers be ours? Shown before anything is published.

Service B unpickles with its own libraries and no servicectl, makes a one-row frame of each request with its columns
in any order, reads numbers from text and takes `float(predict(frame)[0])`. The check does the same in an isolated
process (see `probe` and, for what isolation holds, `confine`).
"""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from servicectl.errors import ConfigError, IntegrityError, ServicectlError, TryAgain
from servicectl.training import child, pickles, trainers
from servicectl.training.child import Limits
from servicectl.training.spec import CanaryRow, ProductFile, Servability, TrainingSpec, verified

if TYPE_CHECKING:
    from servicectl.training.floor import CheckRequest

_CANARY_ROWS = 24
_TIME_LIMIT_S = 120.0
_MEMORY_BASE_MB = 1024
_MEMORY_PER_MODEL_MB = 8  # a pickle unfolds, and is held as bytes meanwhile
_WITH_SCIKIT_LEARN = frozenset({"sklearn", "numpy", "scipy", "pandas", "joblib"})
# No estimator needs these; a pickle that names one wants to run something.
_NEVER = frozenset(
    {"asyncio", "code", "ctypes", "importlib", "multiprocessing", "nt", "os", "pickle", "posix", "pty", "runpy"}
    | {"shutil", "signal", "socket", "subprocess", "sys", "tempfile", "threading", "webbrowser"}
)


class NotServable(ServicectlError):
    """A model that Service B could not load, or would answer other numbers with."""


class ProbeRequest(Struct, frozen=True, kw_only=True):
    """What the isolated process is told. `requests` are rows in `features` order; `orders` shuffles each."""

    path: str
    sha256: str
    classification: bool
    features: tuple[str, ...]
    rows: list[list[float | str | None]]
    orders: list[list[int]]
    roots: list[str]
    allowed: list[str]


class ProbeResult(Struct, frozen=True, kw_only=True):
    predictions: list[float]
    confinement: tuple[str, ...]


def modules_needed(pickled: bytes) -> set[str]:
    """Every module that a pickle names, read from its opcodes without running it; "?" for one that is hidden there.

    Raises ValueError for bytes that are not a plain pickle: joblib's own format is none.
    """
    try:
        modules = {module for module, _ in pickles.names_in(pickled)}
    except Exception as error:
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from error
    if any(module.startswith("joblib.numpy_pickle") for module in modules):
        raise ValueError("joblib.dump wrote it")
    return modules


def check(request: CheckRequest) -> Servability:
    """The child's side of `floor.check`."""
    spec, model = request.spec, request.model
    size_mb = model.bytes / 1e6
    if size_mb > request.max_mb:
        raise NotServable(
            f"the model of {spec.model_id} is {size_mb:.1f} MB, serving.max_mb allows {request.max_mb:g}",
            cure="choose a smaller estimator (fewer or shallower trees), or raise serving.max_mb",
        )
    content = verified(model, "model")
    needed = _libraries(content, request, spec)
    allowed = [*request.allowed, *needed]
    if wrong := pickles.refused(content, allowed):
        raise NotServable(
            f"the model of {spec.model_id} names {', '.join(wrong[:5])}, which no estimator needs; it was not opened",
            cure="find out where this file came from; [trust] allowed_modules says what else is allowed",
        )
    rows, tells = _canary_rows(Path(request.snapshot), spec, request.telling)
    answer = _probed(
        spec, model, rows, [*_WITH_SCIKIT_LEARN, *needed, *(sys.stdlib_module_names - _NEVER)], allowed, size_mb
    )
    canary = tuple(
        CanaryRow(dict(zip(spec.features, row, strict=True)), prediction, told)
        for row, prediction, told in zip(rows, answer.predictions, tells, strict=True)
    )
    return Servability(
        canary=canary, size_mb=round(size_mb, 3), libraries_needed=needed, confinement=answer.confinement
    )


def foresee(spec: TrainingSpec, libraries: Iterable[str], *, any_library: bool) -> None:
    """Before a snapshot is taken, refuse what `check` would refuse after hours of training. Nothing is imported.

    Raises ConfigError for a library or trainer that is not installed here, NotServable for a library that Service B is
    not known to have.
    """
    if trainers.name_of(spec) is not None:
        trainers.check_settings(spec)
        trainers.entry_point(spec)
        return
    root, dot, _ = spec.estimator_path.partition(".")
    if root in _WITH_SCIKIT_LEARN:
        return
    if not (dot and root.isidentifier()):
        raise ConfigError(
            f"models.{spec.model_id}.estimator: there is no {spec.estimator_path!r}",
            cure="write the full name, e.g. sklearn.ensemble.RandomForestClassifier",
        )
    if importlib.util.find_spec(root) is None:
        raise ConfigError(
            f"models.{spec.model_id}.estimator: {root} is not installed here",
            cure=f"pip install 'servicectl[{root}]'" if root == "xgboost" else f"install {root} beside servicectl",
        )
    if not any_library:
        refuse_absent(
            f"a {spec.estimator_path.rpartition('.')[2]} (models.{spec.model_id}.estimator)", [root], libraries
        )


def refuse_absent(what: str, needed: Iterable[str], libraries: Iterable[str]) -> None:
    """Hold the libraries that a model needs against those that Service B has. Raises NotServable."""
    there = {name.replace("-", "_").lower() for name in libraries}
    absent = [name for name in needed if name.partition(".")[0].lower() not in there]
    if absent:
        raise NotServable(
            f"{what} needs {', '.join(absent)}, which Service B is not known to have",
            cure="add it to serving.libraries if Service B has it, choose an estimator of scikit-learn, or set"
            ' serving.mismatch = "warn"',
        )


def _libraries(pickled: bytes, request: CheckRequest, spec: TrainingSpec) -> tuple[str, ...]:
    """The libraries beyond scikit-learn's own that a model needs. Raises NotServable for one not known to be there."""
    try:
        roots = {module.partition(".")[0] for module in modules_needed(pickled)}
    except ValueError as error:
        raise NotServable(
            f"the model of {spec.model_id} is no plain pickle ({error})",
            cure="Service B reads what pickle.dumps wrote; joblib's own format and compressed files are not",
        ) from None
    if forbidden := sorted(roots & _NEVER):
        raise NotServable(
            f"the model of {spec.model_id} names {', '.join(forbidden)}, which no estimator needs; it was not opened",
            cure="find out where this file came from",
        )
    needed = sorted(roots - _WITH_SCIKIT_LEARN - sys.stdlib_module_names)
    if not request.any_library:
        refuse_absent(f"the model of {spec.model_id}", needed, request.libraries)
    return tuple(needed)


def _canary_rows(
    snapshot: Path, spec: TrainingSpec, telling: tuple[int, ...] | None
) -> tuple[list[list[float | str | None]], list[bool | None]]:
    """Values of each row, and whether the champion answers it otherwise."""
    # Here, because the parent imports this module only to raise what a child answered.
    import numpy as np

    from servicectl.training.mode import reads_in_blocks

    if reads_in_blocks(snapshot, spec):
        from servicectl.training.heldout import heldout_in_blocks

        some = heldout_in_blocks(snapshot, spec)
        positions, tells = _positions(len(some), telling)
        frames = list(some.part(np.array(positions)).frame())
        return [[_value(value) for value in row] for frame in frames for row in frame.itertuples(index=False)], tells
    from servicectl.training.frame import read, split

    heldout = split(read(snapshot, spec), spec).heldout
    columns = [heldout.features[name] for name in spec.features]
    positions, tells = _positions(len(heldout), telling)
    return [[_value(column[number]) for column in columns] for number in positions], tells


def _positions(rows: int, telling: tuple[int, ...] | None) -> tuple[list[int], list[bool | None]]:
    """The canary's rows: those by which the champion is told apart, the others evenly over all; and which are which."""
    apart = {rows - 1 - place for place in telling or () if place < rows}
    count = min(_CANARY_ROWS - len(apart), rows)
    positions = sorted(apart | {number * rows // count for number in range(count)})
    return positions, [None if telling is None else number in apart for number in positions]


def _value(value: Any) -> float | str | None:
    if value is None or isinstance(value, str):
        return value
    return None if value != value else float(value)


def _probed(
    spec: TrainingSpec,
    model: ProductFile,
    rows: list[list[float | str | None]],
    roots: list[str],
    allowed: list[str],
    size_mb: float,
) -> ProbeResult:
    shuffler = random.Random(spec.seed)  # noqa: S311 -- any order will do, but the same on every run
    orders = [shuffler.sample(range(len(spec.features)), len(spec.features)) for _ in rows]
    request = ProbeRequest(
        path=model.path,
        sha256=model.sha256,
        classification=spec.task == "classification",
        features=spec.features,
        rows=rows,
        orders=orders,
        roots=sorted(roots),
        allowed=allowed,
    )
    limits = Limits(
        memory_mb=_MEMORY_BASE_MB + int(_MEMORY_PER_MODEL_MB * size_mb),
        timeout_s=_TIME_LIMIT_S,
        memory_key="the limit for one check",
    )
    program = ("-I", str(Path(__file__).with_name("probe.py")))
    what = f"opening the model of {spec.model_id}"
    try:
        return child.run("check", request, ProbeResult, what=what, limits=limits, program=program)
    except (IntegrityError, NotServable, TryAgain):
        raise
    except ServicectlError as error:
        raise NotServable(error.message, cure=error.cure) from None
