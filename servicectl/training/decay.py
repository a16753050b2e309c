"""Has a published model become worse? Its score on the newest labelled rows against that on the rows of its publish.

The two groups of rows are cut into time blocks, and the difference of the two scores gets the gate's own bounds: the
delete-one-group jackknife over all of the blocks (see `evidence`), so that both scores' uncertainty counts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from servicectl.training import evidence
from servicectl.training.frame import Rows, read
from servicectl.training.judge import opened
from servicectl.training.metrics import Mask, Unusable, better, check_name, measure, outputs
from servicectl.training.spec import Decay, TrainingSpec, naive, verified

if TYPE_CHECKING:
    from servicectl.training.floor import DecayRequest


def decay(request: DecayRequest) -> Decay:
    """The child's side of `floor.decay`."""
    spec = request.spec
    check_name(spec.main_metric, spec, f"models.{spec.model_id}.metric")
    content = verified(request.model, "champion")
    rows = read(Path(request.snapshot), spec)
    return lost(
        lambda: opened(content, request.allowed),
        rows,
        rows.times <= np.datetime64(naive(request.judged_until), "us"),
        rows.times > np.datetime64(naive(request.seen_until), "us"),
        spec,
        recorded=request.recorded,
        alpha=request.alpha,
        min_blocks=request.min_blocks,
    )


def lost(
    model: Callable[[], Any],
    rows: Rows,
    before: Mask,
    now: Mask,
    spec: TrainingSpec,
    *,
    recorded: float,
    alpha: float,
    min_blocks: int,
) -> Decay:
    """Given how to get at a model, and which rows are those of its publish and which are new to it."""
    metric, facts = spec.main_metric, Decay(metric=spec.main_metric, rows_now=int(now.sum()))
    older, newer = (_blocks(rows, part) for part in (before, now))
    if _count(newer) < min_blocks:
        wanted = min_blocks * evidence.LEAST_ROWS_PER_BLOCK
        told = f"only {facts.rows_now:,} labelled rows are newer than those it was trained and judged on"
        return msgspec.structs.replace(facts, why_not=f"{told}; about {wanted:,} are needed")
    alone = _count(older) < min_blocks
    kept = rows.part(now if alone else before | now)
    groups = newer if alone else np.concatenate([older, newer + _count(older)])
    is_new = np.ones(len(kept), dtype=np.bool_) if alone else now[before | now]
    try:
        answers = outputs(model(), kept, spec)
    except Unusable as finding:
        return msgspec.structs.replace(facts, why_not=f"the production model cannot be measured: {finding}")

    def score(keep: Mask) -> float | None:
        return measure(metric, answers, keep) if keep.any() else None

    def difference(keep: Mask) -> float | None:
        newest, then = score(keep & is_new), recorded if alone else score(keep & ~is_new)
        return None if newest is None or then is None else better(metric, newest, then)

    found = evidence.compare(difference, groups, evidence.entity_groups(kept.entities), alpha)
    then, newest = recorded if alone else score(~is_new), score(is_new)
    if found is None or then is None or newest is None:
        return msgspec.structs.replace(facts, why_not=f"{metric} is undefined on the newest rows or some part of them")
    return msgspec.structs.replace(
        facts,
        rows_before=0 if alone else int(before.sum()),
        now=newest,
        before=then,
        difference=found.difference,
        high=found.high,
        blocks=_count(groups),
    )


def _blocks(rows: Rows, part: Mask) -> NDArray[np.int64]:
    return evidence.time_blocks(rows.times[part]) if part.any() else np.empty(0, dtype=np.int64)


def _count(blocks: NDArray[np.int64]) -> int:
    return int(blocks[-1]) + 1 if len(blocks) else 0
