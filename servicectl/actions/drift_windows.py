"""Windows of the feature store, copied by the handler and measured here, without Service C."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from servicectl import log
from servicectl.drift.comparison import Evidence, compare
from servicectl.drift.windows import SampleFile, WindowFile, windows_query
from servicectl.errors import BadAnswer, IntegrityError, ServicectlError
from servicectl.estate.artifacts import names

if TYPE_CHECKING:
    from servicectl.actions.world import World
    from servicectl.estate.registry import ModelRow

_STALE_S = 24 * 3600


@dataclass(frozen=True)
class Measurements:
    """`by_window`: every feature against the estate's older window. `by_sample`: (model, feature) against the rows the
    model was trained on, where such a sample was kept."""

    by_window: dict[str, Evidence]
    by_sample: dict[tuple[str, str], Evidence]

    def of(self, model_id: str, feature: str) -> tuple[tuple[str, str], Evidence]:
        """The evidence that counts for a model, with its key; features that share one share the key."""
        if (model_id, feature) in self.by_sample:
            return (model_id, feature), self.by_sample[model_id, feature]
        return ("", feature), self.by_window[feature]


def measure(world: World, rows: Sequence[ModelRow], folder: Path) -> Measurements:
    """Given production rows, compare the newest rows of every feature with its older ones and with training samples.

    `folder` holds the files meanwhile. Raises as the handler's queue does, and BadAnswer for a copy that is not whole.
    """
    features = sorted({feature.name for row in rows for feature in row.expected_features})
    if not features:
        return Measurements({}, {})
    with ExitStack() as files:
        windows = files.enter_context(_windows(world, features, folder))
        samples = {
            row.model_id: files.enter_context(SampleFile(path))
            for row in rows
            if world.config.drift.reference == "auto" and (path := _sample(world, row, folder, files)) is not None
        }
        return _measured(world, rows, features, windows, samples)


def declared_categories(world: World, rows: Sequence[ModelRow]) -> frozenset[str]:
    """Features that some model takes as a category."""
    configured = {name for model in world.config.models.values() for name in model.categorical}
    return frozenset(configured | {f.name for row in rows for f in row.expected_features if f.type == "string"})


def _measured(
    world: World,
    rows: Sequence[ModelRow],
    features: Sequence[str],
    windows: WindowFile,
    samples: dict[str, SampleFile],
) -> Measurements:
    categories, parts = declared_categories(world, rows), world.config.drift.parts
    known = {model_id: sample.features() for model_id, sample in samples.items()}
    by_window: dict[str, Evidence] = {}
    by_sample: dict[tuple[str, str], Evidence] = {}
    for feature in features:
        log.working(f"drift-check: {feature}")
        current, category = windows.column(feature, "current"), feature in categories
        reference = windows.column(feature, "reference")
        by_window[feature] = compare(feature, reference, current, declared_category=category, parts=parts)
        for row in rows:
            if feature in known.get(row.model_id, ()) and any(f.name == feature for f in row.expected_features):
                by_sample[row.model_id, feature] = compare(
                    feature,
                    samples[row.model_id].column(feature),
                    current,
                    declared_category=category,
                    parts=parts,
                )
    return Measurements(by_window, by_sample)


@contextmanager
def _windows(world: World, features: Sequence[str], folder: Path) -> Iterator[WindowFile]:
    """The handler's copy of the windows, moved into our own folder, gone at the end."""
    shared = world.config.snapshot_folder
    shared.mkdir(parents=True, exist_ok=True, mode=0o2770)
    _sweep(shared)
    # A name of its own: a COPY that is executed late must not overwrite what is being read.
    name = f"servicectl-{uuid.uuid4().hex}.parquet"
    written, ours = shared / name, folder / "windows.parquet"
    try:
        try:
            there = f"{world.config.snapshot_folder_handler}/{name}"
            count = world.registry.copy_to_parquet(
                windows_query(features), there, timeout_s=world.config.handler.snapshot_timeout_s
            )
            if not written.is_file():
                raise ServicectlError(
                    f"the handler wrote {count} rows to {there}, but {written} is not there",
                    cure="set handler.snapshot_folder and handler.snapshot_folder_handler to one shared folder; "
                    "servicectl doctor proves it",
                )
            shutil.move(written, ours)
        finally:
            written.unlink(missing_ok=True)
        with WindowFile(ours) as windows:
            if (found := sum(span[0] for span in windows.spans().values())) != count:
                raise BadAnswer(f"the handler counted {count} rows, the windows hold {found}", cure="try again")
            yield windows
    finally:
        ours.unlink(missing_ok=True)


def _sample(world: World, row: ModelRow, folder: Path, files: ExitStack) -> Path | None:
    """The sample of training rows beside a version, downloaded and verified; None where none was kept."""
    name = names.versioned(row.azure_location or names.location(row.model_id), row.model_id, row.version, "parquet")
    blob = world.artifacts.stat(name)
    if blob is None:
        return None
    target = folder / f"sample-{row.model_id}.parquet"
    files.callback(target.unlink, missing_ok=True)
    if blob.sha256 not in (None, world.artifacts.download(name, target).sha256):
        raise IntegrityError(f"{name} does not have the digest on record", cure="retrain, or remove the file")
    return target


def _sweep(shared: Path) -> None:
    """Files of sends that were given up and executed later."""
    for leftover in shared.glob("servicectl-*.parquet"):
        if time.time() - leftover.stat().st_mtime > _STALE_S:
            leftover.unlink(missing_ok=True)
