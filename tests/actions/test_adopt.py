from __future__ import annotations

import hashlib
import json
import pickle
import signal
from pathlib import Path

import pytest

from servicectl.estate.artifacts.pointer import decode
from tests.actions.test_sync_production import Hostile, foreign_blob, incumbent, registered
from tests.parts.estate import ALL_ROWS, Saved, Site, outcomes

PRODUCTION = "Model_Churn/Model_Churn_Production"


def test_an_incumbent_is_put_on_record_archived_and_never_opened(either_site: Site, tmp_path: Path) -> None:
    site = either_site
    trace = tmp_path / "opened"
    content = pickle.dumps(Hostile(trace))
    incumbent(site, "Churn", content)
    told = site.ok("artifacts", "adopt", "Churn")
    assert outcomes(told) == [("adopt", "adopted")]
    digest = hashlib.sha256(content).hexdigest()
    assert told["jobs"][0]["result"] == {
        "model": "Churn", "version": "1.4.2", "sha256": digest, "archived": "Model_Churn/Model_Churn_1.4.2.pkl",
    }  # fmt: skip
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version, pointer.sha256) == (0, "1.4.2", digest)
    assert site.store.read(f"{PRODUCTION}.pkl")[0] == content
    assert not trace.exists()
    assert outcomes(site.ok("artifacts", "adopt", "Churn")) == [("adopt", "already-adopted")]
    # From now on its bytes are held against the record.
    foreign_blob(site, f"{PRODUCTION}.pkl", b"swapped by a stranger")
    assert site.ok("sync-production")["jobs"][-1]["result"]["models"] == {"Churn": "written"}
    served = site.served()
    assert served is not None
    assert served["artifact"] == digest


@pytest.mark.parametrize("step", ["archive/effect", "archive/recorded", "point/effect", "complete/before"])
def test_an_adopt_that_dies_is_finished_as_if_nothing_had_happened(either_site: Site, step: str) -> None:
    site = either_site
    incumbent(site, "Churn", b"bytes from before")
    died = site.run("artifacts", "adopt", "Churn", crash_at=f"adopt/{step}")
    assert died.status == -signal.SIGKILL, died
    told = site.ok("artifacts", "adopt", "Churn")
    assert outcomes(told)[0] == ("adopt", "adopted")
    assert told["jobs"][0]["result"]["archived"] == "Model_Churn/Model_Churn_1.4.2.pkl"
    assert set(site.blobs()) == {f"{PRODUCTION}.json", f"{PRODUCTION}.pkl", "Model_Churn/Model_Churn_1.4.2.pkl"}


def test_a_baseline_from_before_servicectl_is_kept_in_the_pointer(site: Site) -> None:
    incumbent(site, "Churn", b"bytes from before")
    foreign_blob(site, f"{PRODUCTION}.json", json.dumps({"tenure": {"mean": 4.5}}).encode())
    site.ok("artifacts", "adopt", "Churn")
    pointer, baseline = decode(site.store.read(f"{PRODUCTION}.json")[0])
    assert pointer is not None
    assert baseline == {"tenure": {"mean": 4.5}}
    assert json.loads(site.store.read("Model_Churn/Model_Churn_1.4.2.json")[0]) == baseline


def test_a_folder_that_only_the_registry_knows_stays_the_models_folder(site: Site, first_candidate: Saved) -> None:
    site.restore(first_candidate)
    incumbent(site, "Churn", b"bytes from before")
    root = Path(site.url.removeprefix("file://"))
    (root / "from" / "before").mkdir(parents=True)
    (root / "Model_Churn").rename(root / "from/before/churn")
    site.estate.sql("UPDATE model_metadata SET azure_location = 'from/before/churn/' WHERE model_id = 'Churn'")
    site.ok("artifacts", "adopt", "Churn")
    told = site.ok("publish", "Churn")
    assert told["jobs"][0]["result"]["replaces"] == "1.4.2"
    rows = site.estate.tables()["model_metadata"]
    assert {(row["version"], row["azure_location"]) for row in rows} == {
        ("1.4.2", "from/before/churn/"), ("1.4.3", "from/before/churn/"),
    }  # fmt: skip
    assert site.store.stat("from/before/churn/Model_Churn_1.4.2.pkl") is not None
    assert site.ok("models")["models"][0]["generation"] == 1
    assert site.ok("sync-production")["jobs"][-1]["result"]["models"] == {"Churn": "unchanged"}


def test_an_adopted_model_is_replaced_and_archived_only_once(either_site: Site, first_candidate: Saved) -> None:
    site = either_site
    site.restore(first_candidate)
    incumbent(site, "Churn", b"bytes from before")
    site.ok("artifacts", "adopt", "Churn")
    told = site.ok("publish", "Churn")
    assert outcomes(told) == [("publish", "published")]
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version) == (1, "1.4.3")
    digest = hashlib.sha256(b"bytes from before").hexdigest()
    assert [name for name, content in site.blobs().items() if content == digest] == [
        "Model_Churn/Model_Churn_1.4.2.pkl"
    ]
    rows = site.estate.tables()["model_metadata"]
    assert [(row["version"], row["status"]) for row in rows] == [("1.4.2", "deprecated"), ("1.4.3", "production")]


def test_an_adopted_model_is_the_champion_of_the_next_retrain(site: Site, first_candidate: Saved) -> None:
    site.restore(first_candidate)
    shown = site.ok("jobs", "show", site.jobs()[0]["id"])
    model = site.state / shown["result"]["publish"]["candidate"]["model"]["path"]
    incumbent(site, "Churn", model.read_bytes())
    site.ok("artifacts", "adopt", "Churn")
    site.estate.rows(0, ALL_ROWS)
    told = site.ok("retrain", "Churn")
    assert outcomes(told) == [("retrain", "promoted"), ("publish", "published")]
    assert told["jobs"][0]["result"]["champion_version"] == "1.4.2"
    assert told["jobs"][0]["result"]["verdict"]["champion"]["f1_macro"] > 0
    assert told["jobs"][1]["result"]["version"] == "1.4.3"


def test_a_model_that_is_not_there_cannot_be_adopted(site: Site) -> None:
    ended = site.run("--json", "artifacts", "adopt", "Churn")
    assert ended.status == 2, ended
    assert "no production row of Churn" in ended.told["jobs"][0]["error"]
    registered(site, "Churn", "1.4.2")
    ended = site.run("--json", "artifacts", "adopt", "Churn")
    assert ended.status == 2, ended
    assert f"{PRODUCTION}.pkl" in ended.told["jobs"][0]["error"]


def test_of_several_production_rows_the_operator_names_one(site: Site) -> None:
    incumbent(site, "Churn", b"bytes from before")
    registered(site, "Churn", "1.4.3")
    ended = site.run("--json", "artifacts", "adopt", "Churn")
    assert ended.status == 1, ended
    assert "--version" in ended.told["jobs"][0]["cure"]
    told = site.ok("artifacts", "adopt", "Churn", "--version", "1.4.3")
    assert told["jobs"][-1]["result"]["version"] == "1.4.3"
    site.ok("sync-production")
    rows = site.estate.tables()["model_metadata"]
    assert [(row["version"], row["status"]) for row in rows] == [("1.4.2", "deprecated"), ("1.4.3", "production")]
