"""What is compared: everything but what two runs cannot share."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.pointer import Pointer, encode
from servicectl.selftest.picture import Alike, broken_pointers, differences
from servicectl.selftest.places import FolderPlace

JOB, OTHER = "01990000-0000-7000-8000-000000000001", "01990000-0000-7000-8000-000000000002"
ALIKE = Alike({JOB: "<publish 1>", OTHER: "<retrain 2>"}, "2026-01-31")


def test_ids_of_jobs_become_their_places_so_that_a_wrong_reference_still_shows() -> None:
    assert ALIKE.value({"job": JOB}) == {"job": "<publish 1>"} != ALIKE.value({"job": OTHER})
    assert ALIKE.value(f"approve {OTHER}") == "approve <retrain 2>"
    assert ALIKE.value("01990000-0000-7000-8000-00000000ffff") == "<id>"


def test_times_of_the_run_go_and_those_of_the_data_stay() -> None:
    assert ALIKE.value(["2026-01-31T10:00:00.123456+00:00", "2026-02-01 00:00:01", "2026-01-31"]) == ["<time>"] * 3
    assert ALIKE.value("rows until 2024-03-24T07:00:00Z") == "rows until 2024-03-24T07:00:00Z"


def test_files_of_a_job_are_the_same_in_every_epoch_and_only_the_manifest_s_digest_goes() -> None:
    model = {"path": f"work/{JOB}/3/model.pkl", "sha256": "abc", "bytes": 7}
    assert ALIKE.value(model) == {"path": "work/<publish 1>/-/model.pkl", "sha256": "abc", "bytes": 7}
    manifest = {"path": f"work/{JOB}/3/manifest.json", "sha256": "abc", "bytes": 7}
    assert ALIKE.value(manifest) == {"path": "work/<publish 1>/-/manifest.json"}


def test_etags_go_and_what_stands_beside_them_stays() -> None:
    assert ALIKE.value({"etag": "1-a", "pointer_etag": None, "name": "x"}) == {
        "etag": "<etag>",
        "pointer_etag": "<etag>",
        "name": "x",
    }


def test_a_difference_names_its_place_however_deep_it_lies() -> None:
    found = differences(
        {"rows": [1], "job": {"state": "COMPLETED", "spec": {"model": "A"}}, "gone": None},
        {"rows": [1, 1], "job": {"state": "COMPLETED", "spec": {"model": "B"}}, "new": 0},
    )
    assert [(one.item, one.undisturbed, one.killed) for one in found] == [
        ("rows", [1], [1, 1]),
        ("job.spec.model", "A", "B"),
        ("gone", None, "absent"),
        ("new", "absent", 0),
    ]
    assert differences({"same": {"a": [1, None]}}, {"same": {"a": [1, None]}}) == []


def test_a_pointer_to_nothing_or_to_other_bytes_is_broken(tmp_path: Path) -> None:
    place, content = FolderPlace(tmp_path / "artifacts"), b"a model"
    pointer = Pointer(
        model_id="A",
        generation=1,
        version="0.1.0",
        sha256=hashlib.sha256(content).hexdigest(),
        name=names.versioned("Model_A/", "A", "0.1.0", "pkl"),
        job_id=JOB,
        manifest_sha256=None,
        size=len(content),
        published_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    place.put("Model_B/Model_B_Production.json", b'{"from": "before"}')
    assert broken_pointers(place) == []
    place.put(names.production("Model_A/", "A", "json"), encode(pointer, {}))
    [missing] = broken_pointers(place)
    assert missing.endswith("which is not there")
    place.put(pointer.name, b"another")
    [other] = broken_pointers(place)
    assert other.endswith("whose bytes are others")
    place.put(pointer.name, content)
    assert broken_pointers(place) == []


def test_a_folder_becomes_what_was_saved_of_another_with_its_records(tmp_path: Path) -> None:
    first, second = (FolderPlace(tmp_path / name) for name in ("first", "second"))
    first.store().create("Model_A/Model_A_0.1.0.pkl", b"one", {"job": "1"})
    second.store().create("Model_B/Model_B_0.1.0.pkl", b"two", {"job": "2"})
    first.save(tmp_path / "saved")
    second.restore(tmp_path / "saved")
    [blob] = second.blobs()
    assert (blob.name, blob.metadata) == ("Model_A/Model_A_0.1.0.pkl", {"job": "1"})
    second.restore(None)
    assert second.blobs() == ()
