"""A storm of drift, through the real check and the real TriggerJob: the handler in small, real Redis, the real job store."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from servicectl.actions import drift_check
from servicectl.actions.trigger import Desk
from servicectl.actions.world import World
from servicectl.clock import SYSTEM, Clock
from servicectl.config import AnalyticsConfig, Config, DriftConfig, HandlerConfig, ModelConfig, RedisConfig, StateConfig
from servicectl.errors import Busy
from servicectl.jobs.model import Result
from servicectl.jobs.steps import StepChange
from tests.parts.estate import Estate

FEATURES = [f"f{number}" for number in range(40)]
MODELS = {f"M{number}": FEATURES[number * 3 : number * 3 + 13] for number in range(10)}
ROWS, NEWEST = 800, 40


@pytest.fixture
def storming(estate: Estate) -> Iterator[Estate]:
    """Ten models in production over 40 features, of which all have moved far."""
    features = " UNION ALL ".join(f"SELECT {number} AS place" for number in range(len(FEATURES)))
    estate.more_rows("DELETE FROM features_table")
    estate.more_rows(
        "INSERT INTO features_table (entity_id, feature_name, value, event_timestamp, created_at)"
        f" SELECT 'e' || i, 'f' || place, hash(i, place) % 1000 + CASE WHEN i >= {ROWS - NEWEST} THEN 2000 ELSE 0 END,"
        f" TIMESTAMP '2024-01-01' + to_hours(i::BIGINT), TIMESTAMP '2024-01-01' FROM range({ROWS}) AS r(i), ({features})"
    )
    for name, used in MODELS.items():
        expected = ", ".join(
            f"{{'index': {place}, 'name': '{feature}', 'type': 'float', 'drift_score': NULL}}"
            for place, feature in enumerate(used)
        )
        estate.sql(
            "INSERT INTO model_metadata (model_id, artifact_type, version, status, azure_location, expected_features,"
            f" created_at) VALUES ('{name}', 'pkl', '1.0.0', 'production', 'Model_{name}/', [{expected}],"
            " TIMESTAMP '2024-01-01')"
        )
    yield estate
    estate.more_rows("DELETE FROM features_table")


class Storm:
    """Ten minutes by a clock that the test moves; every step of it is a servicectl that was just started."""

    def __init__(self, estate: Estate, folder: Path) -> None:
        self.now = datetime.now(UTC)
        self.events: Counter[str] = Counter()
        models = {name: ModelConfig(label="y", features=tuple(features)) for name, features in MODELS.items()}
        self._config = Config(
            state=StateConfig(str(folder / "state")),
            redis=RedisConfig(url=estate.redis.url),
            handler=HandlerConfig(snapshot_folder=f"{estate.folder}/snapshots"),
            analytics=AnalyticsConfig(source="builtin"),
            drift=DriftConfig(min_window_rows=NEWEST // 2, beside=()),
            models=models,
        )

    def world(self, trigger: str = "operator") -> World:
        clock = Clock(now=lambda: self.now, monotonic=SYSTEM.monotonic, sleep=SYSTEM.sleep)
        return World(self._config, clock=clock, trigger=trigger)

    def check(self) -> None:
        """One drift-check of a timer."""
        self.now += timedelta(seconds=1)
        [ran] = drift_check.start(self.world(), queue_only=True)
        assert ran.job.result is not None, ran
        decided = Counter(one["verdict"] for one in ran.job.result["decisions"])
        self.events["CRITICAL"] += decided["CRITICAL"]
        assert set(ran.job.result["retrain"]) == set(MODELS)

    def trigger(self, model_id: str) -> None:
        """One TriggerJob of Service C, which is told of a job or held back."""
        self.now += timedelta(seconds=1)
        self.events["CRITICAL"] += 1
        try:
            _, created = Desk(self.world("grpc"), lambda _job_id: None).trigger(f"retrain:{model_id}", {}, "")
        except Busy as busy:
            self.events["held back" if "is not retrained now" in busy.message else "refused otherwise"] += 1
        else:
            self.events["queued" if created else "joined"] += 1

    def some_end(self, chance: random.Random) -> None:
        table = self.world().runner.table
        for job in table.unfinished():
            if chance.random() < 0.5:
                claimed = table.claim(job.job_id, {"pid": 1, "host": "here"})
                assert claimed is not None
                table.complete(claimed[0], Result(chance.choice(["promoted", "rejected"])), StepChange(), [])

    def retrains(self) -> list[str]:
        """The models that were retrained, one entry per job."""
        found = self.world().runner.table.newest(kind="retrain", limit=1000)
        return sorted(str(job.spec["model"]) for job in found)


def test_500_critical_events_in_ten_minutes_queue_at_most_ten_retrains(storming: Estate, tmp_path: Path) -> None:
    chance, storm = random.Random(7), Storm(storming, tmp_path)
    began = storm.now

    for _ in range(4):
        # The first round's calls come before drift was ever seen; they reach some of the models, the check the others.
        for _ in range(8):
            storm.trigger(chance.choice(list(MODELS)))
        storm.check()
        for _ in range(8):
            storm.trigger(chance.choice(list(MODELS)))
        storm.some_end(chance)
        storm.now += timedelta(seconds=115)
    storm.now = began + timedelta(minutes=9, seconds=55)
    storm.trigger("M0")

    assert storm.events["CRITICAL"] >= 500
    assert storm.events["held back"] > 0
    assert storm.events["joined"] > 0
    assert storm.events["refused otherwise"] == 0
    assert 0 < storm.events["queued"] < len(MODELS)
    assert storm.retrains() == sorted(MODELS)
