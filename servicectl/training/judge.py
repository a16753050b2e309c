"""Champion and challenger on the same newest rows, which neither has seen; the verdict in words and figures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from servicectl.training import evidence, pickles
from servicectl.training.fit import coded_labels
from servicectl.training.frame import Rows, Split, moment, read, split
from servicectl.training.labels import coded_classes
from servicectl.training.metrics import (
    LOWER_IS_BETTER,
    Mask,
    Outputs,
    Unusable,
    better,
    check_known,
    check_name,
    measure,
    measure_all,
    outputs,
)
from servicectl.training.mode import reads_in_blocks
from servicectl.training.slices import chosen_rows, predict_ms
from servicectl.training.spec import Decision, GateSpec, TrainingSpec, Verdict, naive, verified

if TYPE_CHECKING:
    from servicectl.training.floor import JudgeRequest
    from servicectl.training.heldout import BlockSplit, Known

_TELLING_ROWS = 12
_SAME = 1e-12  # two figures this close are one figure computed in two orders


@dataclass(frozen=True)
class _Champion:
    """What the champion can say for itself: its answers, or why it has none."""

    answers: Outputs | None
    metrics: dict[str, float] | None
    why_not: str = ""


def judge(request: JudgeRequest) -> Verdict:
    """The child's side of `floor.judge`."""
    spec, gate = request.spec, request.gate
    check_name(spec.main_metric, spec, f"models.{spec.model_id}.metric")
    for name in gate.floors:
        check_name(name, spec, f"models.{spec.model_id}.floors")
    # Both digests before either is opened: opening a pickle runs it.
    challenger_bytes = verified(request.challenger, "challenger")
    champion_bytes = verified(request.champion, "champion") if request.champion else None
    parts = _split(Path(request.snapshot), spec, (spec.main_metric, *gate.floors))
    rows = _unseen(parts.heldout, request.champion_seen_until, request.challenger_seen_until)
    also = tuple(dict.fromkeys((spec.main_metric, *gate.floors)))
    empty = Verdict(decision="INCONCLUSIVE", reason="", metric=spec.main_metric, challenger={})
    if len(rows) == 0:
        return msgspec.structs.replace(
            empty, reason="every held-out row was already seen in training; newer rows are needed to judge on"
        )
    base = msgspec.structs.replace(
        empty,
        rows=len(rows),
        heldout_capped=len(parts.heldout) >= spec.heldout_rows,
        heldout_from=moment(rows.times[0]),
        heldout_until=moment(rows.times[-1]),
        champion_rows_unknown=request.champion is not None and request.champion_seen_until is None,
    )
    try:
        answers = outputs(opened(challenger_bytes, request.allowed), rows, spec)
    except Unusable as finding:
        return msgspec.structs.replace(base, decision="REJECT", reason=f"the challenger is unusable: {finding}")
    base = msgspec.structs.replace(
        base,
        challenger=measure_all(answers, spec, also),
        predict_ms=None if gate.max_predict_ms is None else predict_ms(answers),
    )
    if gate.max_mb is not None and (size_mb := request.challenger.bytes / 1e6) > gate.max_mb:
        too_large = f"the challenger is {size_mb:.1f} MB, serving.max_mb is {gate.max_mb:g}"
        return msgspec.structs.replace(base, decision="REJECT", reason=too_large)
    champion = _champion(champion_bytes, request.allowed, rows, spec, also) if champion_bytes is not None else None
    if champion is not None and champion.answers is not None:
        base = _compared(base, answers, champion, rows, gate)
    decision, reason = _decided(base, champion, parts, rows, spec, gate)
    return msgspec.structs.replace(base, decision=decision, reason=reason)


def _decided(
    base: Verdict, champion: _Champion | None, parts: Split | BlockSplit, rows: Rows, spec: TrainingSpec, gate: GateSpec
) -> tuple[Decision, str]:
    if gate.mode == "always":
        return "PROMOTE", "gate = always"
    if gate.max_predict_ms is not None and base.predict_ms is not None and base.predict_ms > gate.max_predict_ms:
        return "REJECT", f"one prediction takes {base.predict_ms:g} ms, gate.max_predict_ms is {gate.max_predict_ms:g}"
    if champion is None:
        return _by_floors("no champion to compare with", base, parts, rows, spec, gate)
    if champion.answers is None:
        said = f"the champion is unusable ({champion.why_not})"
        if gate.floors:
            return _by_floors(said, base, parts, rows, spec, gate)
        return "INCONCLUSIVE", (
            f"{said} and no floors are configured; set models.{spec.model_id}.floors, or gate.mode = always for one run"
        )
    decision, reason = _by_comparison(base, gate)
    return decision, f"{reason}{_reservations(base)}"


def _reservations(base: Verdict) -> str:
    """What a comparison could not allow for."""
    said = ""
    if base.champion_rows_unknown:
        said += "; nobody recorded which rows the champion learnt: it may have learnt some of these, which favours it"
    if 1 < base.entities < evidence.FEWEST_ENTITIES:
        said += f"; {base.entities} entities are too few to allow for one that resembles itself"
    if base.heldout_capped:
        said += f"; only the newest {base.rows:,} rows are judged by (training.heldout_rows)"
    return said


def _by_comparison(base: Verdict, gate: GateSpec) -> tuple[Decision, str]:
    if base.blocks < gate.min_blocks:
        return "INCONCLUSIVE", (
            f"{base.rows} unseen held-out rows make {base.blocks} time blocks; at least {gate.min_blocks} are needed,"
            f" about {base.more_rows} rows more"
        )
    if base.difference is None or base.interval is None:
        return "INCONCLUSIVE", f"{base.metric} is undefined on the held-out rows or some part of them"
    budget = ""
    if earlier := gate.earlier_challengers:
        budget = f", at alpha {base.alpha:.2g} after {earlier} earlier challenger{'s' * (earlier > 1)} of this champion"
    figures = (
        f"{base.metric} differs by {base.difference:+.4f}"
        f" (at least {base.interval[0]:+.4f}, at most {base.interval[1]:+.4f}, over {base.blocks} time blocks{budget})"
    )
    if base.interval[0] > gate.min_improvement:
        held = [_held(name, base.challenger, floor, "the floor") for name, floor in gate.floors.items()]
        if not all(good for good, _ in held):
            below = ", ".join(words for good, words in held if not good)
            return "REJECT", f"better than the champion: {figures}; but below the floors: {below}"
        return _by_slices(base, gate, figures)
    if base.difference <= gate.min_improvement + _SAME:
        return "REJECT", f"not better than the champion by more than {gate.min_improvement:g}: {figures}"
    return "INCONCLUSIVE", (
        f"better than the champion on these rows, but it may be chance: {figures};"
        f" about {base.more_rows} more held-out rows like these would decide it"
    )


def _by_slices(base: Verdict, gate: GateSpec, figures: str) -> tuple[Decision, str]:
    """A better challenger must not be worse on any named slice by more than the margin."""
    for name in gate.slices:
        told = f"better than the champion: {figures}; on the slice {name!r} ({gate.slices[name]})"
        if name not in base.slices:
            return "INCONCLUSIVE", f"{told} {base.metric} cannot be compared: too few rows, or undefined there"
        value, low, high = base.slices[name]
        bounds = f"{value:+.4f} (at least {low:+.4f}, at most {high:+.4f})"
        if high < -gate.slice_margin:
            return "REJECT", f"{told} it is worse: {bounds}"
        if low <= -gate.slice_margin:
            return "INCONCLUSIVE", f"{told} it may be worse by more than {gate.slice_margin:g}: {bounds}"
    return "PROMOTE", f"better than the champion: {figures}"


def _by_floors(
    because: str, base: Verdict, parts: Split | BlockSplit, rows: Rows, spec: TrainingSpec, gate: GateSpec
) -> tuple[Decision, str]:
    """Absolute floors. Where none is set for the main metric: not worse than always answering the same."""
    floors: dict[str, tuple[float, str]] = {name: (least, "the floor") for name, least in gate.floors.items()}
    warning = ""
    if spec.main_metric not in floors:
        constant = _constant(parts, rows, spec)
        if constant is None:
            return "INCONCLUSIVE", f"{because}, and {spec.main_metric} is undefined on the held-out rows"
        floors[spec.main_metric] = (constant, "the constant predictor")
        if (found := base.challenger.get(spec.main_metric)) is not None and f"{found:.4f}" == f"{constant:.4f}":
            warning = "; WARNING: no better than a constant"
    held = [_held(name, base.challenger, floor, said) for name, (floor, said) in floors.items()]
    words = ", ".join(said for _, said in held)
    if all(good for good, _ in held):
        return "PROMOTE", f"{because}; floors decide: {words}{warning}"
    return "REJECT", f"{because}; below the floors: {words}"


def _held(name: str, found: Mapping[str, float], floor: float, said: str) -> tuple[bool, str]:
    if name not in found:
        return False, f"{name} is undefined, {said} is {floor:.4f}"
    margin = better(name, found[name], floor)
    relation = "not worse than" if margin >= -_SAME else "worse than"
    direction = " (lower is better)" if name in LOWER_IS_BETTER else ""
    return margin >= -_SAME, f"{name} {found[name]:.4f}{direction} is {relation} {said}'s {floor:.4f}".replace(
        "the floor's", "the floor"
    )


def _constant(parts: Split | BlockSplit, rows: Rows, spec: TrainingSpec) -> float | None:
    """The main metric of a model that ignores its features, fitted on the training rows."""
    from sklearn.dummy import DummyClassifier, DummyRegressor

    if not isinstance(parts, Split):
        return _constant_of_known(parts.training, rows, spec)
    if spec.task == "regression":
        model = DummyRegressor(strategy="mean").fit(parts.training.frame(), parts.training.labels)
    else:
        coded = coded_labels(parts.training, spec)
        model = DummyClassifier(strategy="prior").fit(parts.training.frame(), coded.codes)
        if coded.classes is not None:
            model.label_classes_ = coded.classes
    return measure_all(outputs(model, rows, spec), spec, (spec.main_metric,)).get(spec.main_metric)


def _constant_of_known(known: Known, rows: Rows, spec: TrainingSpec) -> float | None:
    from sklearn.dummy import DummyClassifier, DummyRegressor

    if spec.task == "regression":
        model = DummyRegressor(strategy="mean").fit([[0]], [known.mean])
    else:
        classes = coded_classes(sorted(known.classes), known.classes.total(), spec)
        weights = [known.classes[value] for value in classes.values]
        model = DummyClassifier(strategy="prior").fit([[0]] * len(weights), classes.codes, sample_weight=weights)
        if classes.originals is not None:
            model.label_classes_ = classes.originals
    return measure_all(outputs(model, rows, spec), spec, (spec.main_metric,)).get(spec.main_metric)


def _split(snapshot: Path, spec: TrainingSpec, metrics: tuple[str, ...]) -> Split | BlockSplit:
    if not reads_in_blocks(snapshot, spec):
        return split(read(snapshot, spec), spec)
    for name in metrics:
        check_known(name, f"models.{spec.model_id}.metric")
    from servicectl.training.heldout import split_in_blocks

    return split_in_blocks(snapshot, spec)


def _compared(base: Verdict, answers: Outputs, champion: _Champion, rows: Rows, gate: GateSpec) -> Verdict:
    assert champion.answers is not None
    incumbent = champion.answers

    def difference(keep: Mask) -> float | None:
        ours, theirs = measure(base.metric, answers, keep), measure(base.metric, incumbent, keep)
        return None if ours is None or theirs is None else better(base.metric, ours, theirs)

    alpha = evidence.spent(gate.alpha, gate.earlier_challengers)
    wanted = max(evidence.BLOCKS, gate.min_blocks)
    blocks = evidence.time_blocks(rows.times, wanted)
    entities = evidence.entity_groups(rows.entities)
    found = evidence.compare(difference, blocks, entities, alpha)
    count = int(blocks[-1]) + 1
    more: int | None
    if count < gate.min_blocks:
        more = max(1, gate.min_blocks * evidence.LEAST_ROWS_PER_BLOCK - len(rows))
    else:
        more = None if found is None else evidence.more_rows(found, gate.min_improvement, len(rows))
    return msgspec.structs.replace(
        base,
        champion=champion.metrics,
        blocks=count,
        difference=None if found is None else found.difference,
        interval=None if found is None else (found.low, found.high),
        more_rows=more if found is None or found.low <= gate.min_improvement else None,
        alpha=alpha,
        slices={} if not gate.slices else _sliced(difference, answers.frame, rows, gate, alpha),
        entities=len(np.unique(rows.entities)),
        entity_groups=0 if entities is None else int(entities.max()) + 1,
        telling=_telling(answers, incumbent),
    )


def _telling(ours: Outputs, theirs: Outputs) -> tuple[int, ...]:
    """Rows by which serving can be told apart: answered differently, evenly over all such rows, counted from the newest."""
    places = np.flatnonzero(~np.isclose(ours.predicted, theirs.predicted, rtol=1e-6, atol=1e-9))
    chosen = places[np.linspace(0, len(places) - 1, min(_TELLING_ROWS, len(places))).astype(np.int64)]
    return tuple(len(ours.predicted) - 1 - int(place) for place in chosen)


def _sliced(
    difference: Callable[[Mask], float | None], frame: Any, rows: Rows, gate: GateSpec, alpha: float
) -> dict[str, tuple[float, float, float]]:
    """The difference and its bounds on each named slice; a slice that cannot be measured is left out."""
    found = {}
    for name, condition in gate.slices.items():
        inside = chosen_rows(frame, condition, f"gate.slices.{name}")
        if not inside.any():
            continue
        places = np.flatnonzero(inside)

        def within(keep: Mask, places: NDArray[np.int64] = places) -> float | None:
            mask = np.zeros(len(rows), dtype=np.bool_)
            mask[places[keep]] = True
            return difference(mask)

        blocks = evidence.time_blocks(rows.times[places])
        if int(blocks[-1]) + 1 < gate.min_blocks:
            continue
        bounds = evidence.compare(within, blocks, evidence.entity_groups(rows.entities[places]), alpha)
        if bounds is not None:
            found[name] = (bounds.difference, bounds.low, bounds.high)
    return found


def _champion(
    content: bytes, allowed: tuple[str, ...], rows: Rows, spec: TrainingSpec, also: tuple[str, ...]
) -> _Champion:
    try:
        answers = outputs(opened(content, allowed), rows, spec)
    except Unusable as finding:
        return _Champion(None, None, str(finding))
    return _Champion(answers, measure_all(answers, spec, also))


def opened(content: bytes, allowed: tuple[str, ...]) -> Any:
    """Unpickle verified bytes that name nothing beyond the allow-list. Raises Unusable, whatever the pickle raises."""
    if wrong := pickles.refused(content, allowed):
        raise Unusable(f"it names {', '.join(wrong[:5])}, which is not allowed; it was not opened")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another scikit-learn version; what matters is whether it predicts
        try:
            return pickles.Unpickler(content, allowed).load()
        except Exception as error:
            words = (str(error).splitlines() or [""])[0]
            raise Unusable(f"it cannot be loaded: {type(error).__name__}: {words}") from error


def _unseen(rows: Rows, *seen_until: datetime | None) -> Rows:
    known = [naive(moment) for moment in seen_until if moment is not None]
    if not known:
        return rows
    return rows.part(rows.times > np.datetime64(max(known), "us"))
