"""drift-check --calibrate: how far each feature moves by itself, stored and held against every later check."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from servicectl import log
from servicectl.errors import IntegrityError
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
    """Measure every production feature's own movements and store the cut-offs. Raises as whoever has the rows does.

    Of a feature that is found in several places, the widest movements count.
    """
    from servicectl.actions.drift_sources import origins, reader
    from servicectl.actions.drift_windows import declared_categories
    from servicectl.drift.calibration import cut_off
    from servicectl.drift.windows import WideWindowFile, WindowFile
    from servicectl.drift.windows_sql import Wide, history_query

    chance = world.config.drift.false_alarms if budget is None else budget
    production = world.registry.production()
    places, categories = origins(world, production, {}), declared_categories(world, production)
    features = sorted({name for origin in places.values() for name in origin.names})
    found: dict[str, Stored] = {}
    world.config.state_folder.mkdir(parents=True, exist_ok=True, mode=0o750)
    with (
        reader(world) as rows,
        tempfile.TemporaryDirectory(prefix="calibration-", dir=world.config.state_folder) as own,
    ):
        for number, origin in enumerate(places.values()):
            path = Path(own) / f"history-{number}.parquet"
            rows.copy(history_query(origin.names, origin.rows), path, origin.table)
            wide = isinstance(origin.rows, Wide)
            with WideWindowFile(path, origin.names) if wide else WindowFile(path) as history:
                for feature in origin.names:
                    log.working(f"calibrate: {feature}")
                    told = cut_off(
                        history.numbers(feature, "reference"),
                        chance / len(features),
                        category=feature in categories,
                        text=history.holds_text(feature),
                    )
                    if told is not None:
                        _add(found, feature, told)
    left_out = tuple(feature for feature in features if feature not in found)
    calibration = Calibration(world.clock.now().astimezone(UTC), chance, found, left_out)
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


def _add(found: dict[str, Stored], feature: str, told: CutOff) -> None:
    known = found.get(feature, Stored(0.0, 0.0, 0.0, told.places, told.rows))
    found[feature] = Stored(
        max(known.ks, told.ks),
        max(known.share_change, told.share_change),
        max(known.estate_psi, told.estate_psi),
        min(known.places, told.places),
        min(known.rows, told.rows),
    )
