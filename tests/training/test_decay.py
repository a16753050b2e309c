from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from servicectl.errors import IntegrityError
from servicectl.training import floor
from servicectl.training.decay import decay
from servicectl.training.frame import moment, read, split
from servicectl.training.spec import Decay, ProductFile, Trained
from tests.training.making import bank, bank_spec, product, wide_snapshot


class Flips:
    """Right about a row whose `told` is its label, until that column lies."""

    def predict(self, frame: Any) -> Any:
        return frame["told"].to_numpy().astype(np.int64)


SPEC = bank_spec(features=("told",), label="happened", metric="accuracy")


def stream(path: Path, *, lies_now: float, rows: int = 4000, lies_before: float = 0.2) -> Path:
    """Half of the rows before the publish, half after it, one an hour; `lies` are shares of wrong rows."""
    lied = f"(i * 7919) % 1000 < 1000 * CASE WHEN i < {rows // 2} THEN {lies_before} ELSE {lies_now} END"
    return wide_snapshot(
        path,
        f"SELECT 'e' || i AS entity_id, TIMESTAMP '2024-01-01' + to_hours(i) AS event_timestamp, i % 2 AS happened,"
        f" CASE WHEN {lied} THEN 1 - i % 2 ELSE i % 2 END AS told FROM range({rows}) AS r(i)",
        SPEC,
    )


def measured(snapshot: Path, model: ProductFile, rows: int = 4000, **given: Any) -> Decay:
    """In this process; the child's own process is tested once."""
    until = datetime(2024, 1, 1) + (rows // 2 - 1) * (datetime(2024, 1, 2) - datetime(2024, 1, 1)) / 24  # noqa: DTZ001 -- snapshots hold naive UTC
    asked: dict[str, Any] = {
        "recorded": 0.8,
        "judged_until": until,
        "seen_until": until,
        "alpha": 0.01,
        "min_blocks": 15,
    }
    allowed = (__name__,)
    return decay(floor.DecayRequest(spec=SPEC, snapshot=str(snapshot), model=model, allowed=allowed, **(asked | given)))


@pytest.fixture
def model(tmp_path: Path) -> ProductFile:
    return product(tmp_path / "model.pkl", Flips())


def test_a_model_that_is_wrong_more_often_on_the_newest_rows_has_lost_its_score(
    tmp_path: Path, model: ProductFile
) -> None:
    found = measured(stream(tmp_path / "s.parquet", lies_now=0.4), model)

    assert found.why_not == ""
    assert (found.before, found.now) == (pytest.approx(0.8, abs=0.01), pytest.approx(0.6, abs=0.01))
    assert found.difference == pytest.approx(found.now - found.before)
    assert found.difference < found.high < 0
    assert (found.rows_before, found.rows_now, found.blocks) == (2000, 2000, 60)


def test_a_model_that_is_as_wrong_as_before_has_not(tmp_path: Path, model: ProductFile) -> None:
    found = measured(stream(tmp_path / "s.parquet", lies_now=0.2), model)

    assert abs(found.difference) < 0.02
    assert found.high > 0


def test_where_the_rows_of_the_publish_are_gone_the_score_on_record_stands_in(
    tmp_path: Path, model: ProductFile
) -> None:
    snapshot = stream(tmp_path / "s.parquet", lies_now=0.4)
    found = measured(snapshot, model, recorded=0.9, judged_until=datetime(2023, 1, 1))  # noqa: DTZ001 -- snapshots hold naive UTC -- naive UTC

    assert (found.rows_before, found.before) == (0, 0.9)
    assert found.difference == pytest.approx(-0.3, abs=0.01)
    assert found.blocks == 30


def test_too_few_new_labels_are_no_measurement_and_say_how_many_are_needed(tmp_path: Path, model: ProductFile) -> None:
    late = datetime(2024, 6, 15)  # noqa: DTZ001 -- snapshots hold naive UTC -- naive UTC, as snapshots hold it
    found = measured(stream(tmp_path / "s.parquet", lies_now=0.4), model, seen_until=late)

    assert found.why_not.startswith("only 15 labelled rows are newer")
    assert "about 150 are needed" in found.why_not


def test_a_model_that_cannot_answer_is_no_measurement(tmp_path: Path) -> None:
    silent = product(tmp_path / "model.pkl", {"not": "a model"})
    found = measured(stream(tmp_path / "s.parquet", lies_now=0.4), silent)

    assert found.why_not.startswith("the production model cannot be measured: it cannot predict")


def test_the_score_of_a_real_champion_falls_with_another_market_in_a_process_of_its_own(
    tmp_path: Path, bank_before: Path, bank_after: Path, bank_champion: Trained
) -> None:
    held = split(read(bank_before, bank_spec()), bank_spec()).heldout
    until = moment(held.times[-1])

    def of(snapshot: Path) -> Decay:
        return floor.decay(
            bank_spec(metric="accuracy"), snapshot, bank_champion.model,
            recorded=0.9, judged_until=until, seen_until=until, alpha=0.01, min_blocks=15,
        )  # fmt: skip

    later = bank(tmp_path / "later.parquet", "r > 16000 AND (r <= 20000 OR r > n - 15000)")
    found = of(later)
    assert found.high < 0
    assert found.difference < -0.1
    assert of(bank_before).why_not.startswith("only 0 labelled rows are newer")


def test_bytes_that_are_not_on_record_are_never_opened(tmp_path: Path, model: ProductFile) -> None:
    changed = msgspec.structs.replace(model, sha256="0" * 64)
    with pytest.raises(IntegrityError, match="was not opened"):
        measured(stream(tmp_path / "s.parquet", lies_now=0.4), changed)
