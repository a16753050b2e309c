from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from servicectl.training.floor import DescribeRequest
from servicectl.training.frame import describe
from servicectl.training.package import manifest, manifest_bytes
from servicectl.training.spec import Trained, TrainingSpec, Verdict
from tests.training.making import bank_spec


def test_a_manifest_says_what_a_version_is_made_of(bank_before: Path, bank_champion: Trained) -> None:
    facts = describe(DescribeRequest(spec=bank_spec(), snapshot=str(bank_before), query="SELECT 1"))
    assert facts is not None
    verdict = Verdict(decision="PROMOTE", reason="first", metric="f1_macro", challenger={"f1_macro": 0.485})
    content = manifest(
        bank_spec(),
        version="0.1.0",
        snapshot=facts,
        trained=bank_champion,
        verdict=verdict,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        feature_types={"age": "int"},
        job_id="j",
    )
    stored = json.loads(manifest_bytes(content))

    assert stored["model"] == {"sha256": bank_champion.model.sha256, "bytes": bank_champion.model.bytes}
    assert stored["snapshot"]["sha256"] == facts.sha256
    assert stored["snapshot"]["query"] == "SELECT 1"
    assert stored["features"][0] == {"index": 0, "name": "age", "type": "int", "categorical": False}
    assert stored["split"]["rows_trained"] == 16000
    assert stored["verdict"]["decision"] == "PROMOTE"
    assert stored["created_at"] == "2026-01-01T00:00:00Z"
    assert bank_champion.model.path not in manifest_bytes(content).decode()
    assert manifest_bytes(content) == manifest_bytes(dict(reversed(content.items())))
    assert msgspec.json.decode(manifest_bytes(content)) == stored


def test_the_manifest_holds_all_that_the_training_was_told(bank_before: Path, bank_champion: Trained) -> None:
    given = bank_spec(heldout_rows=5, passes=7, metric="log_loss", window_s=9.0, entity_column="who", memory_mb=900)
    facts = describe(DescribeRequest(spec=bank_spec(), snapshot=str(bank_before)))
    verdict = Verdict(decision="PROMOTE", reason="first", metric="f1_macro", challenger={})
    content = manifest(
        given,
        version="0.1.0",
        snapshot=facts,
        trained=bank_champion,
        verdict=verdict,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    stored = json.loads(manifest_bytes(content))

    assert set(stored["training"]["spec"]) == set(TrainingSpec.__struct_fields__)
    assert msgspec.convert(stored["training"]["spec"], TrainingSpec) == given
    assert (stored["training"]["mode"], stored["training"]["metric"]) == ("memory", "log_loss")
    assert set(stored["snapshot"]["schema"]) == set(facts.columns)
    assert stored["snapshot"]["schema"]["event_timestamp"] == "TIMESTAMP"
    assert stored["snapshot"]["schema"]["age"] == "DOUBLE"
