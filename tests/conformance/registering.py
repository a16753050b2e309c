"""Rows for the registry's tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import date, datetime

from servicectl.errors import ServicectlError
from servicectl.estate.registry import Feature, ModelRow, Registry

ROW = ModelRow(
    model_id="Loan",
    artifact_type="pkl",
    version="0.1.0",
    trained_date=date(2026, 11, 23),
    model_drift_score=None,
    status="staging",
    azure_location="Model_Loan/",
    expected_features=(Feature(0, "age é", "int"), Feature(1, "income", "float"), Feature(2, "tenure", "float", 0.125)),
    created_at=datetime.fromisoformat("2026-11-23 01:02:03.4"),
)


def production(registry: Registry, row: ModelRow, expected_current: str | None = None) -> None:
    """Insert a version and switch it in."""
    registry.insert_staging(row)
    registry.switch_production(row.model_id, row.version, expected_current)


def side_by_side(acts: Sequence[Callable[[], object]]) -> list[ServicectlError | None]:
    """Start all at one moment; each one's error, or None."""
    outcomes: list[ServicectlError | None] = [None] * len(acts)
    start = threading.Barrier(len(acts))

    def run(place: int, act: Callable[[], object]) -> None:
        start.wait()
        try:
            act()
        except ServicectlError as failure:
            outcomes[place] = failure

    threads = [threading.Thread(target=run, args=(place, act)) for place, act in enumerate(acts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
