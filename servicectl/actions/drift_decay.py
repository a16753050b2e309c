"""Whether production models have lost their score where labels have arrived: verified bytes, rows they have not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from servicectl import log
from servicectl.actions import retrain
from servicectl.actions.drift_sources import Reader, label_rows, reader
from servicectl.actions.production import Truth, fetch, read_truth
from servicectl.actions.verification import allowed_names, manifest_behind
from servicectl.drift import decay as judgement
from servicectl.drift.values import FeatureRows, Judged, Measured, Verdict
from servicectl.errors import BadAnswer, BadData, IntegrityError
from servicectl.sql import identifier, literal
from servicectl.training import floor
from servicectl.training.source import snapshot_query
from servicectl.training.spec import Decay, TrainingSpec, aware, naive

if TYPE_CHECKING:
    from servicectl.actions.world import World
    from servicectl.estate.registry import ModelRow

_MOST_ROWS = 20_000
_LEAST_ROWS = 500
_PLACE = '"servicectl place"'  # a column of our own beside the model's


class Shown(Struct, frozen=True):
    """One measurement as it was made, for whoever asks for the evidence."""

    model_id: str
    version: str
    decay: Decay


@dataclass(frozen=True)
class Decayed:
    """`rows` is None where nothing could be measured; then `measured` says why."""

    measured: Measured
    rows: FeatureRows | None = None
    shown: Shown | None = None


@dataclass(frozen=True)
class _Published:
    """What a version's manifest says of its publish."""

    spec: TrainingSpec
    recorded: float
    judged_from: datetime
    judged_until: datetime
    seen_until: datetime
    rows: int


def measure(world: World, rows: Sequence[ModelRow], folder: Path) -> dict[str, Decayed]:
    """Given the production rows to look at, each one's decay. A model that cannot be measured does not stop the others.

    Raises as the handler's queue and the artifact store do when they are away.
    """
    if not rows:
        return {}
    with reader(world) as source:
        return {row.model_id: _measured(world, row, source, folder, len(rows)) for row in rows}


def _measured(world: World, row: ModelRow, source: Reader, folder: Path, models: int) -> Decayed:
    log.working(f"drift-check: decay of {row.model_id}")
    try:
        truth = read_truth(world, row.model_id, row.azure_location or None)
        published = _published(world, row, truth)
        if isinstance(published, str):
            return _not(published)
        # Cheap, and on most nights all there is to know: a snapshot of labelled rows is a join over all of them.
        newest = label_rows(world, source, row.model_id).newest
        if newest is None or aware(newest) <= published.seen_until:
            return _not(f"no labelled row is newer than those {row.version} was trained and judged on")
        return _compared(world, row, truth, published, source, folder, models)
    except (IntegrityError, BadAnswer, BadData) as wrong:
        return _not(wrong.message)


def _published(world: World, row: ModelRow, truth: Truth) -> _Published | str:
    """The manifest's word, or why there is none."""
    if row.model_id not in world.config.models:
        return f"there is no [models.{row.model_id}] section: its label is not known"
    if truth.pointer is None or truth.pointer.version != row.version:
        return f"{row.version} was not published by servicectl: its score then is not on record"
    manifest = manifest_behind(world, truth.location, truth.pointer)
    verdict: dict[str, Any] = (manifest or {}).get("verdict", {})
    metric, first, last = (verdict.get(name) for name in ("metric", "heldout_from", "heldout_until"))
    recorded = verdict.get("challenger", {}).get(metric)
    if manifest is None or recorded is None or first is None or last is None:
        return f"the score of {row.version} when it was published is not on record"
    judged_until = datetime.fromisoformat(last)
    trained_until = datetime.fromisoformat(manifest["split"]["trained_until"])
    # What this very version was trained on, not what the configuration says today.
    spec = msgspec.structs.replace(
        retrain.training_spec(world, row.model_id, None),
        task=manifest["task"],
        label=manifest["label"],
        features=tuple(feature["name"] for feature in manifest["features"]),
        categorical=tuple(feature["name"] for feature in manifest["features"] if feature["categorical"]),
        metric=metric,
        window_s=None,
        window_auto=False,
        max_rows=None,
        training="memory",
    )
    return _Published(
        spec,
        float(recorded),
        datetime.fromisoformat(first),
        judged_until,
        max(aware(judged_until), aware(trained_until)),
        int(verdict.get("rows", 0)),
    )


def _compared(
    world: World, row: ModelRow, truth: Truth, published: _Published, source: Reader, folder: Path, models: int
) -> Decayed:
    snapshot = folder / f"labelled-{row.model_id}.parquet"
    fetched: Path | None = None
    try:
        source.copy(_query(world, row.model_id, published), snapshot, world.config.model(row.model_id).source.table)
        newest, new = _newest(snapshot, published)
        if new == 0:
            return _not(f"no labelled row is newer than those {row.version} was trained and judged on")
        artifact = fetch(world, row.model_id, truth, folder)
        if artifact is None:
            return _not(f"the artifact store has no production model of {row.model_id}")
        fetched = Path(artifact.file.path)
        found = floor.decay(
            published.spec,
            snapshot,
            artifact.file,
            recorded=published.recorded,
            judged_until=published.judged_until,
            seen_until=published.seen_until,
            # As for features: one budget for all that is looked at.
            alpha=world.config.drift.false_alarms / models,
            min_blocks=world.config.gate.min_blocks,
            allowed=allowed_names(world, row.model_id),
        )
    finally:
        snapshot.unlink(missing_ok=True)
        if fetched is not None:
            fetched.unlink(missing_ok=True)
    if found.why_not:
        return _not(found.why_not)
    lost = judgement.Lost(
        found.metric, found.before, found.now, found.difference, found.high, found.blocks, found.rows_now
    )
    judged = judgement.judge(lost, world.config.drift.effect_floor_decay)
    return Decayed(
        Measured(None, None, None, None, "", judged),
        FeatureRows(new, 0, newest),
        Shown(row.model_id, row.version, found),
    )


def _query(world: World, model_id: str, published: _Published) -> str:
    """The newest labelled rows, and those that the version was judged on at its publish; as many of either.

    All that came since would drown a loss of last week.
    """
    spec = published.spec
    inner = snapshot_query(spec, retrain.rows_source(world.config.model(model_id)))
    time, entity = identifier(spec.time_column), identifier(spec.entity_column)
    since, until = literal(naive(published.judged_from)), literal(naive(published.judged_until))
    seen = literal(naive(published.seen_until))
    most = min(_MOST_ROWS, max(_LEAST_ROWS, published.rows))
    columns = ", ".join(identifier(name) for name in (spec.entity_column, spec.time_column, spec.label, *spec.features))
    return (
        f"SELECT {columns} FROM (SELECT *, row_number() OVER (PARTITION BY {time} > {seen} ORDER BY {time} DESC,"
        f" {entity} DESC) AS {_PLACE} FROM ({inner}) AS labelled"
        f" WHERE {time} > {seen} OR ({time} >= {since} AND {time} <= {until})) AS chosen"
        f" WHERE {_PLACE} <= {literal(most)} ORDER BY {time}, {entity}"
    )


def _newest(snapshot: Path, published: _Published) -> tuple[datetime | None, int]:
    """The time of the newest row, and how many are new to the model."""
    import duckdb

    time, seen = identifier(published.spec.time_column), literal(naive(published.seen_until))
    with duckdb.connect() as connection:
        found = connection.execute(
            f"SELECT max({time}), count(*) FILTER ({time} > {seen}) FROM read_parquet({literal(str(snapshot))})"
        ).fetchall()
    return found[0][0], int(found[0][1])


def _not(why: str) -> Decayed:
    return Decayed(Measured(None, None, None, None, "", Judged(Verdict.NOT_MEASURED, why)))
