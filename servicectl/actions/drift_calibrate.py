"""drift-check --calibrate: how far each feature moves by itself, stored and held against every later check."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from servicectl import log
from servicectl.errors import IntegrityError, ServicectlError
from servicectl.files import write_atomically

if TYPE_CHECKING:
    from servicectl.actions.world import World
    from servicectl.drift.calibration import CutOff

_FILE = "drift_calibration.json"


class Stored(Struct, frozen=True):
    ks: float
    share_change: float
    estate_psi: float
    places: float
    rows: int


class Calibration(Struct, frozen=True):
    """`budget`: the chance of any false CRITICAL in a check, shared by the features. `left_out`: those with too few
    rows, which keep the configured floors."""

    made_at: datetime
    budget: float
    features: dict[str, Stored]
    left_out: tuple[str, ...] = ()


def calibrate(world: World, budget: float | None) -> Calibration:
    """Measure every production feature's own movements and store the cut-offs. Raises as the handler's queue does."""
    from servicectl.drift.calibration import cut_off
    from servicectl.drift.windows import WindowFile, history_query

    chance = world.config.drift.false_alarms if budget is None else budget
    rows = world.registry.production()
    features = sorted({feature.name for row in rows for feature in row.expected_features})
    found: dict[str, Stored] = {}
    if features:
        path = _copied(world, history_query(features))
        try:
            with WindowFile(path) as history:
                for feature in features:
                    log.working(f"calibrate: {feature}")
                    told = cut_off(history.numbers(feature, "reference"), chance / len(features))
                    if told is not None:
                        found[feature] = _stored(told)
        finally:
            path.unlink(missing_ok=True)
    left_out = tuple(feature for feature in features if feature not in found)
    calibration = Calibration(world.clock.now().astimezone(UTC), chance, found, left_out)
    world.config.state_folder.mkdir(parents=True, exist_ok=True, mode=0o750)
    write_atomically(world.config.state_folder / _FILE, msgspec.json.encode(calibration))
    return calibration


def load(world: World) -> Mapping[str, Stored]:
    """The stored cut-offs by feature; none before the first calibration. Raises IntegrityError."""
    path = world.config.state_folder / _FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration).features
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise IntegrityError(
            f"the calibration {path} cannot be read: {error}",
            cure="remove it, or run servicectl drift-check --calibrate",
        ) from None


def _stored(told: CutOff) -> Stored:
    return Stored(told.ks, told.share_change, told.estate_psi, told.places, told.rows)


def _copied(world: World, query: str) -> Path:
    name = f"servicectl-{uuid.uuid4().hex}.parquet"
    shared, there = world.config.snapshot_folder, f"{world.config.snapshot_folder_handler}/{name}"
    shared.mkdir(parents=True, exist_ok=True, mode=0o2770)
    ours = world.config.state_folder / f"calibration-{name}"
    try:
        world.registry.copy_to_parquet(query, there, timeout_s=world.config.handler.snapshot_timeout_s)
        if not (shared / name).is_file():
            raise ServicectlError(
                f"the handler wrote {there}, but {shared / name} is not there",
                cure="set handler.snapshot_folder and handler.snapshot_folder_handler to one shared folder",
            )
        ours.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        shutil.move(shared / name, ours)
    finally:
        (shared / name).unlink(missing_ok=True)
    return ours
