"""Windows of rows, copied by whoever has them and measured here, without Service C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from servicectl import log
from servicectl.actions.drift_sources import (
    Origin,
    Reader,
    counts,
    has_table,
    origin_name,
    origins,
    reader,
    source_of,
    windows,
)
from servicectl.actions.production import read_truth
from servicectl.actions.verification import manifest_behind
from servicectl.drift.comparison import Column, Evidence, compare
from servicectl.drift.trigger import LABEL, PREDICTION
from servicectl.drift.values import FeatureRows
from servicectl.drift.windows import SampleFile, WideWindowFile, WindowFile
from servicectl.drift.windows_sql import prediction_log
from servicectl.errors import BadAnswer, IntegrityError
from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.protocol import NoSuchBlob

if TYPE_CHECKING:
    from servicectl.actions.world import World
    from servicectl.estate.registry import ModelRow

Key = tuple[str, str, str]
"""("rows", origin, feature), or ("model", model, feature) for what belongs to one model alone."""

_ANSWERS = "what models answered"


@dataclass
class Measurements:
    """What was measured of a look. `evidence` of features stands under the rows' origin, and under the model where a
    sample of its training rows was kept. `rows` are by model and feature; LABEL and PREDICTION are features here.
    `failed`: (model, feature) -> why it could not be looked at at all."""

    evidence: dict[Key, Evidence] = field(default_factory=dict)
    rows: dict[tuple[str, str], FeatureRows] = field(default_factory=dict)
    place: dict[Key, str] = field(default_factory=dict)
    origin_of: dict[str, str] = field(default_factory=dict)
    failed: dict[tuple[str, str], str] = field(default_factory=dict)

    def of(self, model_id: str, feature: str) -> tuple[Key, Evidence] | None:
        """The evidence that counts for a model, with its key; models that share one share the key."""
        keys = (("model", model_id, feature), ("rows", self.origin_of.get(model_id, ""), feature))
        return next(((key, self.evidence[key]) for key in keys if key in self.evidence), None)

    def by_window(self) -> dict[str, Evidence]:
        """Of the features of the feature store's long table, against its older rows: what Service C compares too."""
        return {name: one for (kind, place, name), one in self.evidence.items() if (kind, place) == ("rows", "")}

    def ambiguous(self) -> frozenset[str]:
        """Features of one name in several places, which are not the same feature."""
        seen: dict[str, set[str]] = {}
        for kind, place, name in self.evidence:
            if kind == "rows":
                seen.setdefault(name, set()).add(place)
        return frozenset(name for name, places in seen.items() if len(places) > 1)

    def add(self, key: Key, place: str, evidence: Evidence) -> None:
        self.evidence[key], self.place[key] = evidence, place


@dataclass(frozen=True)
class Sample:
    """The rows that a version was trained on, as far as they were kept. `why_not`: there are some, not to be believed."""

    file: SampleFile | None = None
    names: frozenset[str] = frozenset()
    why_not: str = ""

    def column(self, name: str, like: Column) -> Column | None:
        """A column of the same kind as the newest rows' (a model may take for text what another takes for numbers)."""
        if self.file is None or name not in self.names:
            return None
        column = self.file.column(name)
        return column if (column.values.dtype.kind == "f") == (like.values.dtype.kind == "f") else None


def measure(
    world: World,
    rows: Sequence[ModelRow],
    folder: Path,
    *,
    labels: Mapping[str, str] | None = None,
    predictions: frozenset[str] = frozenset(),
) -> Measurements:
    """Given production rows, compare the newest rows of every feature with its older ones and with training samples.

    `labels` (by model) and the answers of the models in `predictions` are compared too. `folder` holds the files
    meanwhile. Raises as the handler's queue does; of rows that are not in the feature store's long table, what cannot
    be read is told in `failed`.
    """
    found = Measurements()
    with ExitStack() as files:
        source = files.enter_context(reader(world))
        samples = {row.model_id: _sample(world, row, folder, files) for row in rows}
        for number, origin in enumerate(origins(world, rows, labels or {}).values()):
            its = [row for row in rows if origin_name(source_of(world, row.model_id)) == origin.name]
            found.origin_of |= {row.model_id: origin.name for row in its}
            try:
                counted = counts(source, origin)
                with windows(source, origin, folder / f"windows-{number}.parquet") as cut:
                    _of_origin(world, found, origin, its, cut, samples, labels or {})
            except BadAnswer as refused:
                if origin.name == "":
                    raise
                log.warning(f"{', '.join(row.model_id for row in its)}: {refused}")
                found.failed |= {(row.model_id, f.name): refused.message for row in its for f in row.expected_features}
                found.failed |= {(row.model_id, LABEL): refused.message for row in its}
                continue
            for row in its:
                found.rows |= {(row.model_id, f.name): counted[f.name] for f in row.expected_features}
                if row.model_id in (labels or {}):
                    found.rows[row.model_id, LABEL] = counted[(labels or {})[row.model_id]]
        answering = [row for row in rows if row.model_id in predictions]
        if answering:
            _predictions(world, found, source, answering, folder / "answers.parquet")
    return found


def declared_categories(world: World, rows: Sequence[ModelRow]) -> frozenset[str]:
    """Features that some model takes as a category."""
    configured = {name for model in world.config.models.values() for name in model.categorical}
    return frozenset(configured | {f.name for row in rows for f in row.expected_features if f.type == "string"})


def _of_origin(
    world: World,
    found: Measurements,
    origin: Origin,
    rows: Sequence[ModelRow],
    cut: WindowFile | WideWindowFile,
    samples: Mapping[str, Sample],
    labels: Mapping[str, str],
) -> None:
    categories, parts = declared_categories(world, rows), world.config.drift.parts
    features = {feature.name for row in rows for feature in row.expected_features}
    for name in origin.names:
        log.working(f"drift-check: {name}")
        current, reference = cut.column(name, "current"), cut.column(name, "reference")
        category = name in categories
        if name in features:
            one = compare(name, reference, current, declared_category=category, parts=parts)
            found.add(("rows", origin.name, name), origin.name, one)
        for row in rows:
            sample = samples[row.model_id]
            if any(feature.name == name for feature in row.expected_features):
                if sample.why_not:
                    found.failed[row.model_id, name] = sample.why_not
                elif (learnt := sample.column(name, current)) is not None:
                    one = compare(name, learnt, current, declared_category=category, parts=parts)
                    found.add(("model", row.model_id, name), origin.name, one)
            if labels.get(row.model_id) == name:
                one = _label(world, row, name, reference, current, sample)
                found.add(("model", row.model_id, LABEL), f"labels of {origin.name}", one)


def _label(world: World, row: ModelRow, name: str, reference: Column, current: Column, sample: Sample) -> Evidence:
    reference = sample.column(name, current) or reference
    classes = world.config.model(row.model_id).task == "classification"
    return compare(LABEL, reference, current, declared_category=classes, parts=world.config.drift.parts)


def _predictions(world: World, found: Measurements, source: Reader, rows: Sequence[ModelRow], target: Path) -> None:
    """Each version's own answers, older against newest: another version rightly answers otherwise."""
    if not has_table(source, "model_logs"):
        found.failed |= {(row.model_id, PREDICTION): "there is no table model_logs" for row in rows}
        return
    log_rows = prediction_log((row.model_id, row.version) for row in rows)
    origin = Origin(_ANSWERS, tuple(row.model_id for row in rows), log_rows, "model_logs")
    counted = counts(source, origin)
    with windows(source, origin, target) as cut:
        for row in rows:
            if counted[row.model_id].rows == 0:
                found.failed[row.model_id, PREDICTION] = f"model_logs has no answer of {row.version}"
                continue
            reference, current = (cut.column(row.model_id, side) for side in ("reference", "current"))
            one = compare(PREDICTION, reference, current, parts=world.config.drift.parts)
            found.add(("model", row.model_id, PREDICTION), f"{_ANSWERS} {row.model_id}", one)
            found.rows[row.model_id, PREDICTION] = counted[row.model_id]


def _sample(world: World, row: ModelRow, folder: Path, files: ExitStack) -> Sample:
    """The sample of training rows that the version's own manifest names by digest, downloaded and held against it."""
    if world.config.drift.reference == "window":
        return Sample()
    target = folder / f"sample-{row.model_id}.parquet"
    files.callback(target.unlink, missing_ok=True)
    try:
        truth = read_truth(world, row.model_id, row.azure_location or None)
        if truth.pointer is None or truth.pointer.version != row.version:
            return Sample()
        manifest = manifest_behind(world, truth.location, truth.pointer)
        kept = (manifest or {}).get("sample")
        if kept is None:
            return Sample()
        name = names.versioned(truth.location, row.model_id, row.version, "parquet")
        if world.artifacts.download(name, target).sha256 != kept["sha256"]:
            return Sample(why_not=f"{name} does not have the digest on record")
    except NoSuchBlob:
        log.warning(f"the sample of what {row.model_id} {row.version} learnt from is gone; its older rows stand in")
        return Sample()
    except IntegrityError as wrong:
        return Sample(why_not=wrong.message)
    sample = files.enter_context(SampleFile(target))
    return Sample(sample, sample.features())
