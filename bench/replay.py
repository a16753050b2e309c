"""Does it keep models right? Real streams replayed: the first model for ever, servicectl's loop, a retrain every step.

The rows are taken in order of time. The oldest fifth trains the first model; the rest comes in steps of equal size.
Every step is predicted before it is learnt from (prequentially), by five models:

    first   the first model, for ever
    drift   drift of the features (builtin statistics: what the model learnt from against the newest step) asks for a
            challenger; it is trained on the older rows, held against the champion on the newest ones by the gate, and
            replaces it if promoted
    decay   the same, but the champion's own loss of score asks: on its newest rows, against those it was promoted on
            (the first model: those of its first step)
    both    the same, where the features have drifted and the score is lost (`trigger = "drift-and-decay"`)
    always  a new model on all rows so far after every step

`gain_ratio` is what `drift`, the default trigger, gains over the first model, in parts of what `always` gains (over
streams where `always` gains at all; the least of them), `retrain_ratio` its trainings over those of `always` (the
most); `decay_` and `both_` are the same of the other triggers. A picture of each stream is written as HTML. FILE is any Parquet file with a time column: `replay FILE --time COLUMN --label COLUMN
--task classification`; without one, the bank calls, the storms and the bicycles that the tests use.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from servicectl.training.frame import Rows
    from servicectl.training.spec import TrainingSpec

MINIMUM = {"gain_ratio": 0.95}
LIMITS = {"retrain_ratio": 1 / 3}
_ROOT = Path(__file__).resolve().parents[1]
_FIRST = 0.2
_STEPS = 30
_TRIGGERS = ("drift", "decay", "both")
_STRATEGIES = ("first", *_TRIGGERS, "always")


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="a Parquet file, one row per event")
    parser.add_argument("--time", help="its time column")
    parser.add_argument("--label", help="its label column")
    parser.add_argument("--task", choices=("classification", "regression"), default="classification")
    parser.add_argument("--picture", default="replay.html", help="where the curves are drawn (default: %(default)s)")


@dataclass
class _Run:
    """One strategy on one stream. `scores`: of each step."""

    model: Any
    scores: list[float]
    truth: list[NDArray[Any]]
    said: list[NDArray[Any]]
    retrains: int = 0
    promoted: int = 0
    seconds: float = 0.0
    learnt: Rows | None = None
    judged: tuple[int, int] | None = None  # the rows of its promotion, by place


def run(
    quick: bool,
    file: str | None = None,
    time: str | None = None,
    label: str | None = None,
    task: str = "classification",
    picture: str = "replay.html",
) -> dict[str, float]:
    """Figures over the streams where retraining helps; NaN where it helps in none."""
    if file is not None and not (time and label):
        raise SystemExit("replay FILE needs --time and --label")
    os.environ["OMP_NUM_THREADS"] = "1"  # before scikit-learn is imported: threads that wait for each other cost more
    streams = _shipped() if file is None else {Path(file).stem: _given(Path(file), str(time), str(label), task)}
    found = {name: _replayed(rows, spec, 15 if quick else _STEPS) for name, (rows, spec) in streams.items()}
    gains: dict[str, list[float]] = {trigger: [] for trigger in _TRIGGERS}
    retrains: dict[str, list[float]] = {trigger: [] for trigger in _TRIGGERS}
    heads = ("stream", "strategy", "score", "retrains", "promoted", "CPU s")
    print(f"{heads[0]:<26}{heads[1]:<10}" + "".join(f"{head:>10}" for head in heads[2:]), file=sys.stderr)
    for name, runs in found.items():
        total = {strategy: _total(one, streams[name][1]) for strategy, one in runs.items()}
        for strategy, one in runs.items():
            cells = (f"{total[strategy]:.4f}", f"{one.retrains}", f"{one.promoted}", f"{one.seconds:.1f}")
            print(f"{name:<26}{strategy:<10}" + "".join(f"{cell:>10}" for cell in cells), file=sys.stderr)
        possible = total["always"] - total["first"]
        if possible > 0.005:
            for trigger in _TRIGGERS:
                gains[trigger].append((total[trigger] - total["first"]) / possible)
                retrains[trigger].append(runs[trigger].retrains / runs["always"].retrains)
        else:
            print(f"{name}: retraining at every step gains nothing; left out of the ratios", file=sys.stderr)
    _draw(found, Path(picture))
    figures = {}
    for trigger in _TRIGGERS:
        prefix = "" if trigger == "drift" else f"{trigger}_"
        figures[f"{prefix}gain_ratio"] = round(min(gains[trigger], default=math.nan), 3)
        figures[f"{prefix}retrain_ratio"] = round(max(retrains[trigger], default=math.nan), 3)
    return figures


def _shipped() -> dict[str, tuple[Rows, TrainingSpec]]:
    data = _ROOT / "tests/data"
    bank = _ROOT / "servicectl/miniature/data/bank_marketing_calls.parquet"
    return {
        "bank_marketing_calls": _given(bank, "event_timestamp", "subscribed", "classification"),
        "atlantic_storms": _given(data / "atlantic_storms.parquet", "event_timestamp", "status", "classification"),
        "bike_sharing_hourly": _given(data / "bike_sharing_hourly.parquet", "event_timestamp", "cnt", "regression"),
    }


def _given(path: Path, moment: str, label: str, task: str) -> tuple[Rows, TrainingSpec]:
    """All other columns are features: numbers as numbers, text of at most 50 values as categories."""
    import duckdb

    from servicectl.sql import identifier, literal
    from servicectl.training.frame import read
    from servicectl.training.source import snapshot_query
    from servicectl.training.spec import Source, TrainingSpec

    with duckdb.connect() as connection, tempfile.TemporaryDirectory() as folder:
        table = f"read_parquet({literal(str(path))})"
        columns = connection.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()
        features, categorical = [], []
        for name, kind, *_ in columns:
            if name in (moment, label, "entity_id") or kind.startswith(("TIMESTAMP", "DATE", "TIME")):
                continue
            if kind == "VARCHAR":
                counted = connection.execute(f"SELECT count(DISTINCT {identifier(name)}) FROM {table}").fetchone()
                if counted is None or counted[0] > 50:
                    continue
                categorical.append(name)
            features.append(name)
        entity = "entity_id" if any(name == "entity_id" for name, *_ in columns) else "'all'"
        spec = TrainingSpec(
            model_id=path.stem,
            task="regression" if task == "regression" else "classification",
            label=label,
            features=tuple(features),
            categorical=tuple(categorical),
            estimator="sklearn.ensemble.HistGradientBoosting" + ("Regressor" if task == "regression" else "Classifier"),
            params={"max_iter": 30},
            metric="r2" if task == "regression" else "accuracy",
        )
        query = f"SELECT *{' EXCLUDE (entity_id)' if entity == 'entity_id' else ''}, {entity} AS entity_id FROM {table}"
        source = Source(kind="sql", query=query, time_column=moment)
        snapshot = Path(folder) / "snapshot.parquet"
        connection.execute(f"COPY ({snapshot_query(spec, source)}) TO {literal(str(snapshot))} (FORMAT parquet)")
        return read(snapshot, spec), spec


def _replayed(rows: Rows, spec: TrainingSpec, steps: int) -> dict[str, _Run]:
    first = int(len(rows) * _FIRST)
    cuts = [first + (len(rows) - first) * step // steps for step in range(steps + 1)]
    start = rows.part(slice(0, first))
    model = _fitted(start, spec)
    runs = {strategy: _Run(model, [], [], [], learnt=start) for strategy in _STRATEGIES}
    for begin, end in itertools.pairwise(cuts):
        step, known = rows.part(slice(begin, end)), rows.part(slice(0, end))
        for strategy, one in runs.items():
            truth, said = _asked(one.model, step, spec)
            one.truth.append(truth)
            one.said.append(said)
            one.scores.append(_score(truth, said, spec))
            before = process_time()
            if strategy == "always":
                one.model, one.retrains, one.promoted = _fitted(known, spec), one.retrains + 1, one.promoted + 1
            elif strategy in _TRIGGERS:
                _loop(one, strategy, step, known, spec)
            one.seconds += process_time() - before
    return runs


def _loop(one: _Run, trigger: str, step: Rows, known: Rows, spec: TrainingSpec) -> None:
    """What `drift-check` and `retrain` do: the challenger is judged on rows that neither model has seen."""
    from servicectl.training import evidence
    from servicectl.training.frame import split
    from servicectl.training.metrics import better, measure, outputs

    assert one.learnt is not None
    if one.judged is None:
        one.judged = len(known) - len(step), len(known)
    decayed = trigger != "drift" and _decayed(one, known, spec)
    pulled = decayed if trigger == "decay" else _drifted(one.learnt, step, spec) and (trigger == "drift" or decayed)
    if not pulled:
        return
    one.retrains += 1
    parts = split(known, spec)
    challenger = _fitted(parts.training, spec)
    unseen = parts.heldout.part(parts.heldout.times > one.learnt.times[-1])
    ours, theirs = outputs(challenger, unseen, spec), outputs(one.model, unseen, spec)

    def difference(keep: NDArray[np.bool_]) -> float | None:
        mine, its = measure(spec.main_metric, ours, keep), measure(spec.main_metric, theirs, keep)
        return None if mine is None or its is None else better(spec.main_metric, mine, its)

    blocks = evidence.time_blocks(unseen.times)
    found = evidence.compare(difference, blocks, evidence.entity_groups(unseen.entities), 0.05)
    if found is not None and blocks[-1] + 1 >= 15 and found.low > 0:
        one.model, one.learnt, one.promoted = challenger, parts.training, one.promoted + 1
        one.judged = len(known) - len(unseen), len(known)


def _decayed(one: _Run, known: Rows, spec: TrainingSpec) -> bool:
    """Whether the champion has lost its score, by the check's own rule."""
    from servicectl.drift.decay import Lost, judge
    from servicectl.training.decay import lost

    assert one.judged is not None
    start, end = one.judged
    places = np.arange(len(known))
    newest = max(end, len(known) - max(500, end - start))
    found = lost(
        lambda: one.model,
        known,
        (places >= start) & (places < end),
        places >= newest,
        spec,
        recorded=0.0,
        alpha=0.01,
        min_blocks=15,
    )
    if found.why_not:
        return False
    told = Lost(found.metric, found.before, found.now, found.difference, found.high, found.blocks, found.rows_now)
    return judge(told, 0.05).verdict == "CRITICAL"


def _drifted(reference: Rows, current: Rows, spec: TrainingSpec) -> bool:
    """Whether the builtin statistics call any feature's change CRITICAL."""
    from servicectl.drift.comparison import Column, compare
    from servicectl.drift.judgement import Rules, judge

    found = [
        compare(name, _column(reference, name, Column), _column(current, name, Column), declared_category=name in spec.categorical)
        for name in spec.features
    ]  # fmt: skip
    return any(one.judged is not None and one.judged.verdict == "CRITICAL" for one in judge(found, Rules()).values())


def _column(rows: Rows, name: str, kind: Any) -> Any:
    from servicectl.training.frame import absent

    values = rows.features[name]
    if values.dtype != object:
        return kind(values)
    missing = absent(values)
    return kind(values[~missing].astype(str), absent_text=int(missing.sum()))


def _fitted(rows: Rows, spec: TrainingSpec) -> Any:
    from servicectl.training.fit import fitted_pipeline

    return fitted_pipeline(rows, spec)[0]


def _asked(model: Any, rows: Rows, spec: TrainingSpec) -> tuple[NDArray[Any], NDArray[Any]]:
    from servicectl.training.fit import LABELS_ATTRIBUTE

    said = np.asarray(model.predict(rows.frame()))
    classes = getattr(model, LABELS_ATTRIBUTE, None)
    if spec.task == "classification" and classes is not None:
        said = np.array([classes[int(code)] for code in said], dtype=object)
    return rows.labels, said


def _score(truth: NDArray[Any], said: NDArray[Any], spec: TrainingSpec) -> float:
    if spec.task == "classification":
        return float((truth == said).mean())
    spread = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float(((truth - said) ** 2).sum()) / spread if spread else math.nan


def _total(one: _Run, spec: TrainingSpec) -> float:
    return _score(np.concatenate(one.truth), np.concatenate(one.said), spec)


def _draw(found: dict[str, dict[str, _Run]], path: Path) -> None:
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=len(found), cols=1, subplot_titles=list(found))
    for row, runs in enumerate(found.values(), 1):
        for strategy, one in runs.items():
            told = f"{strategy} ({one.retrains} retrains)"
            steps = list(range(1, len(one.scores) + 1))
            figure.add_scatter(x=steps, y=one.scores, name=told, row=row, col=1)
    figure.update_layout(height=360 * len(found), title="Score of each step, predicted before it is learnt from")
    figure.write_html(path, include_plotlyjs=True)
    print(f"the curves: {path}", file=sys.stderr)
