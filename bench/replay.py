"""Does it keep models right? Real streams replayed: the first model for ever, servicectl's loop, a retrain every step.

The rows are taken in order of time. The oldest fifth trains the first model; the rest comes in steps of equal size, each
of which is predicted before it is learnt from (prequentially). After each step servicectl looks and, where it says so,
retrains (`bench/_replay_loop.py` says what of it is real and what is not), as

    drift   shipped: drift of the features by the builtin statistics retrains
    decay   `trigger = "decay"`: the champion's own loss of score retrains
    both    `trigger = "drift-and-decay"`
    calm    `drift-check --calibrate` before each look; drift retrains
    auto    `drift-and-decay`, and `window = "auto"`
    tuned   what came nearest to the target: `gate = "always"`, 2 % held out, a cooldown of three looks

and beside it stand `first`, one model of the oldest fifth for ever; `always`, a new model of all rows so far after every
step, with no row held out and no gate; and `third`, the same after every third step: what the wanted number of retrains
is worth on a calendar. servicectl's own first model is trained without the rows it holds out.

`gain_ratio` is what `drift` gains over the first model, in parts of what `always` gains (over streams where `always`
gains at all; the least of them), `retrain_ratio` its trainings over those of `always` (the most); `X_gain_ratio` and
`X_retrain_ratio` are the same of the others. Wanted are 0.95 and a third. A picture of each stream is written as HTML. FILE is
any Parquet file with a time column: `replay FILE --time COLUMN --label COLUMN --task classification`; without one, the
bank calls, the storms and the bicycles that the tests use.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bench._replay_floor import Stream
    from bench._replay_loop import Loop
    from servicectl.training.spec import TrainingSpec

_WANTED_GAIN, _WANTED_RETRAINS = 0.95, 1 / 3
_ROOT = Path(__file__).resolve().parents[1]
_FIRST = 0.2
_STEPS = 30
_EVERY = {"third": 3, "always": 1}
_SETTINGS: dict[str, dict[str, Any]] = {
    "drift": {},
    "decay": {"trigger": "decay"},
    "both": {"trigger": "drift-and-decay"},
    "calm": {"calibrated": True},
    "auto": {"trigger": "drift-and-decay", "window": "auto"},
    "tuned": {"heldout_fraction": 0.02, "gate": "always", "cooldown": 2.5},
}
MINIMUM = {"gain_ratio": _WANTED_GAIN} | {f"{name}_gain_ratio": _WANTED_GAIN for name in _SETTINGS if name != "drift"}
LIMITS = {"retrain_ratio": _WANTED_RETRAINS} | {
    f"{name}_retrain_ratio": _WANTED_RETRAINS for name in _SETTINGS if name != "drift"
}


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="a Parquet file, one row per event")
    parser.add_argument("--time", help="its time column")
    parser.add_argument("--label", help="its label column")
    parser.add_argument("--task", choices=("classification", "regression"), default="classification")
    parser.add_argument("--picture", default="replay.html", help="where the curves are drawn (default: %(default)s)")


@dataclass
class Course:
    """How one strategy did. `scores`: of each step."""

    scores: list[float] = field(default_factory=list)
    truth: list[NDArray[Any]] = field(default_factory=list)
    said: list[NDArray[Any]] = field(default_factory=list)
    retrains: int = 0
    promoted: int = 0
    held_back: int = 0
    seconds: float = 0.0

    def total(self, spec: TrainingSpec) -> float:
        return _score(np.concatenate(self.truth), np.concatenate(self.said), spec)


def run(
    quick: bool,
    file: str | None = None,
    time: str | None = None,
    label: str | None = None,
    task: str = "classification",
    picture: str = "replay.html",
) -> dict[str, float | None]:
    """Figures over the streams where retraining helps; None where it helps in none."""
    if file is not None and not (time and label):
        raise SystemExit("replay FILE needs --time and --label")
    os.environ["OMP_NUM_THREADS"] = "1"  # before scikit-learn is imported: threads that wait for each other cost more
    with tempfile.TemporaryDirectory(prefix="servicectl-bench-") as scratch:
        folder = Path(scratch)
        streams = shipped(folder) if file is None else _given(Path(file), str(time), str(label), task, folder)
        steps = 15 if quick else _STEPS
        found = {name: replayed(stream, steps, _SETTINGS) for name, stream in streams.items()}
        specs = {name: stream.spec for name, stream in streams.items()}
    gains, retrains = compared(found, specs, _SETTINGS)
    _draw(found, Path(picture))
    figures: dict[str, float | None] = {}
    for name in _SETTINGS:
        prefix = "" if name == "drift" else f"{name}_"
        figures[f"{prefix}gain_ratio"] = round(min(gains[name]), 3) if gains[name] else None
        figures[f"{prefix}retrain_ratio"] = round(max(retrains[name]), 3) if retrains[name] else None
    return figures


def shipped(folder: Path) -> dict[str, Stream]:
    data = _ROOT / "tests/data"
    bank = _ROOT / "servicectl/miniature/data/bank_marketing_calls.parquet"
    return {
        **_given(bank, "event_timestamp", "subscribed", "classification", folder),
        **_given(data / "atlantic_storms.parquet", "event_timestamp", "status", "classification", folder),
        **_given(data / "bike_sharing_hourly.parquet", "event_timestamp", "cnt", "regression", folder),
    }


def _given(path: Path, moment: str, label: str, task: str, folder: Path) -> dict[str, Stream]:
    from bench._replay_floor import opened

    return {path.stem: opened(path, moment, label, task, folder)}


def replayed(stream: Stream, steps: int, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Course]:
    """Given settings by name, the course of each, of `first` and of `always`."""
    from bench._replay_loop import Loop, Settings, answers
    from servicectl.training.fit import fitted_pipeline

    rows, spec = stream.rows, stream.spec
    first = int(len(rows) * _FIRST)
    cuts = [first + (len(rows) - first) * step // steps for step in range(steps + 1)]
    loops = {name: Loop.begun(stream, Settings(**changes), first) for name, changes in settings.items()}
    models = {"first": fitted_pipeline(rows.part(slice(0, first)), spec)[0]}
    models |= dict.fromkeys(_EVERY, models["first"])
    courses = {name: Course() for name in ("first", *loops, *_EVERY)}
    for night, (begin, end) in enumerate(itertools.pairwise(cuts), 1):
        step = rows.part(slice(begin, end))
        for name, course in courses.items():
            truth, said = answers(loops[name].champion.model if name in loops else models[name], step, spec)
            course.truth.append(truth)
            course.said.append(said)
            course.scores.append(_score(truth, said, spec))
        for name, loop in loops.items():
            _look(loop, courses[name], night, end)
        before = process_time()
        new = fitted_pipeline(rows.part(slice(0, end)), spec)[0]
        spent = process_time() - before
        for name in (name for name, every in _EVERY.items() if night % every == 0):
            models[name], course = new, courses[name]
            course.retrains, course.promoted, course.seconds = (
                course.retrains + 1,
                course.promoted + 1,
                course.seconds + spent,
            )
    return courses


def _look(loop: Loop, course: Course, night: int, end: int) -> None:
    """A challenger may have been trained for another strategy before: its own time counts, and none twice."""
    trained, before = loop.seconds, process_time()
    known = loop.stream.seconds
    loop.look(night, end)
    course.seconds += process_time() - before - (loop.stream.seconds - known) + loop.seconds - trained
    course.retrains, course.promoted, course.held_back = len(loop.retrains), loop.promoted, loop.held_back


def compared(
    found: Mapping[str, Mapping[str, Course]], specs: Mapping[str, TrainingSpec], names: Mapping[str, object]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Gain and retrains of each strategy in parts of those of `always`, of the streams where it gains; told on stderr."""
    gains: dict[str, list[float]] = {name: [] for name in names}
    retrains: dict[str, list[float]] = {name: [] for name in names}
    heads = ("score", "gain", "retrains", "promoted", "held back", "CPU s")
    print(f"{'stream':<24}{'strategy':<10}" + "".join(f"{head:>10}" for head in heads), file=sys.stderr)
    for stream, courses in found.items():
        total = {name: course.total(specs[stream]) for name, course in courses.items()}
        possible = total["always"] - total["first"]
        for name, course in courses.items():
            gain = (total[name] - total["first"]) / possible if possible > 0.005 else math.nan
            numbers = f"{course.retrains:>10}{course.promoted:>10}{course.held_back:>10}{course.seconds:>10.1f}"
            print(f"{stream:<24}{name:<10}{total[name]:>10.4f}{gain:>10.2f}{numbers}", file=sys.stderr)
            if name in names and not math.isnan(gain):
                gains[name].append(gain)
                retrains[name].append(course.retrains / courses["always"].retrains)
        if possible <= 0.005:
            print(f"{stream}: a retrain at every step gains nothing; left out of the ratios", file=sys.stderr)
    return gains, retrains


def _score(truth: NDArray[Any], said: NDArray[Any], spec: TrainingSpec) -> float:
    if spec.task == "classification":
        return float((truth == said).mean())
    spread = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float(((truth - said) ** 2).sum()) / spread if spread else math.nan


def _draw(found: Mapping[str, Mapping[str, Course]], path: Path) -> None:
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=len(found), cols=1, subplot_titles=list(found))
    for row, courses in enumerate(found.values(), 1):
        for name, course in courses.items():
            told = f"{name} ({course.retrains} retrains)"
            figure.add_scatter(x=list(range(1, len(course.scores) + 1)), y=course.scores, name=told, row=row, col=1)
    figure.update_layout(height=360 * len(found), title="Score of each step, predicted before it is learnt from")
    figure.write_html(path, include_plotlyjs=True)
    print(f"the curves: {path}", file=sys.stderr)
