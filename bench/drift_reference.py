"""Which reference alarms how often on real streams: the estate's older window, or the sample of what a model learnt from.

The calls, storms and bicycles that the tests use, each looked at 12 times while its rows come in (from 30 % of them on).
At each look the newest 5 % of the rows so far are held, feature by feature and by the default rules, against

    window  the rows from 50 % to 70 %, as Service C does
    calm    the same, with the cut-offs that `drift-check --calibrate` would have set just before
    kept    the sample of a model trained on all rows before the newest (`reference = "auto"`, retrained before each look)
    first   the sample of a model trained on the first 30 % for good

A figure is the share of feature-looks that are CRITICAL; `..._looks` the share of looks with any, which would retrain.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench._replay_loop import column
from bench.replay import shipped

if TYPE_CHECKING:
    from servicectl.training.frame import Rows
    from servicectl.training.spec import TrainingSpec

_LOOKS = 12
_FROM = 0.3
_NEWEST = 0.05


def run(quick: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="servicectl-bench-") as folder:
        return _measured({name: (one.rows, one.spec) for name, one in shipped(Path(folder)).items()}, quick=quick)


def _measured(streams: Mapping[str, tuple[Rows, TrainingSpec]], *, quick: bool) -> dict[str, float]:
    critical: dict[str, list[bool]] = {}
    looks: dict[str, list[bool]] = {}
    for name, (rows, spec) in streams.items():
        of_stream: dict[str, list[bool]] = {}
        for share in np.linspace(_FROM, 1.0, 4 if quick else _LOOKS):
            for reference, found in _look(rows.part(slice(0, int(len(rows) * share))), rows, spec).items():
                of_stream.setdefault(reference, []).extend(found)
                looks.setdefault(reference, []).append(any(found))
        told = ", ".join(f"{reference} {np.mean(found):.0%}" for reference, found in of_stream.items())
        print(f"{name}: CRITICAL against {told}", file=sys.stderr)
        for reference, found in of_stream.items():
            critical.setdefault(reference, []).extend(found)
    figures = {reference: round(float(np.mean(found)), 3) for reference, found in critical.items()}
    return figures | {f"{reference}_looks": round(float(np.mean(found)), 3) for reference, found in looks.items()}


def _look(known: Rows, rows: Rows, spec: TrainingSpec) -> dict[str, list[bool]]:
    newest = int(len(known) * (1 - _NEWEST))
    older = known.part(slice(0, newest))
    references = {
        "window": known.part(slice(int(len(known) * 0.5), int(len(known) * 0.7))),
        "kept": _sample(older, spec),
        "first": _sample(rows.part(slice(0, int(len(rows) * _FROM))), spec),
    }
    current = known.part(slice(newest, None))
    found = {name: _critical(reference, current, spec, {}) for name, reference in references.items()}
    return found | {"calm": _critical(references["window"], current, spec, _cut_offs(older, spec))}


def _cut_offs(older: Rows, spec: TrainingSpec) -> dict[str, float]:
    from servicectl.drift.calibration import cut_off
    from servicectl.drift.judgement import Rules

    rules, found = Rules(), {}
    for name in spec.features:
        values = older.features[name]
        if values.dtype == object:
            values = np.unique(values.astype(str), return_inverse=True)[1]
        told = cut_off(values.astype(np.float64), rules.false_alarms / len(spec.features), resamples=100)
        if told is not None:
            found[name] = max(told.ks / rules.effect_floor_ks, told.share_change / rules.effect_floor_share)
    return found


def _sample(rows: Rows, spec: TrainingSpec) -> Rows:
    """As training keeps it: of the rows that were trained on, without those held out."""
    from servicectl.training.baseline import sample_positions
    from servicectl.training.frame import split

    training = split(rows, spec).training
    return training.part(sample_positions(len(training), spec.seed))


def _critical(reference: Rows, current: Rows, spec: TrainingSpec, cut_offs: dict[str, float]) -> list[bool]:
    from servicectl.drift.comparison import compare
    from servicectl.drift.judgement import Rules, judge

    found = [
        compare(name, column(reference, name), column(current, name), declared_category=name in spec.categorical)
        for name in spec.features
    ]
    return [
        one.judged is not None and one.judged.verdict == "CRITICAL"
        for one in judge(found, Rules(cut_offs=cut_offs)).values()
    ]
