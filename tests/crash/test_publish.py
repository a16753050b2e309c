"""A publish killed after each of its steps, resumed, ends in the state of an undisturbed one; in both artifact stores."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from servicectl.estate.artifacts import open_store
from tests.parts.estate import Estate, Saved, Site, azure_site, checked_pointer, local_site, outcomes

STEPS = (
    "reserve", "upload", "register", "try candidate", "archive", "swap", "point", "switch", "project", "canary",
)  # fmt: skip
POINTS = [f"{step}/{moment}" for step in STEPS for moment in ("effect", "recorded")]
# The last step's end and the job's are recorded together.
POINTS[-1:] = ["complete/before", "complete/recorded"]


@pytest.fixture(params=["file", pytest.param("azure", marks=pytest.mark.parts)])
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def undisturbed(
    request: pytest.FixtureRequest,
    estate: Estate,
    second_candidate: Saved,
    store: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What all stores hold after a second publish that nothing interrupted."""
    key = f"undisturbed {store}"
    values: dict[str, Any] = request.config.stash.setdefault(_UNDISTURBED, {})
    if key not in values:
        site = new_site(estate, store, tmp_path_factory.mktemp("undisturbed"))
        site.restore(second_candidate)
        assert outcomes(site.ok("publish", "Churn")) == [("publish", "published")]
        values[key] = site.picture()
    picture: dict[str, Any] = values[key]
    return picture


_UNDISTURBED = pytest.StashKey[dict[str, Any]]()


def new_site(estate: Estate, store: str, folder: Path) -> Site:
    return local_site(estate, folder) if store == "file" else azure_site(estate, folder)


@pytest.mark.parametrize(
    ("store", "point"),
    [("file", point) for point in POINTS]
    # What was recorded is the job table's business, whatever the store: there the visible part is enough.
    + [
        pytest.param("azure", point, marks=pytest.mark.parts)
        for point in POINTS
        if not point.endswith("/recorded") or point in ("swap/recorded", "point/recorded", "complete/recorded")
    ],
    indirect=["store"],
)
def test_a_publish_killed_at_any_point_is_resumed_to_the_same_state(
    estate: Estate, store: str, tmp_path: Path, second_candidate: Saved, undisturbed: dict[str, Any], point: str
) -> None:
    site = new_site(estate, store, tmp_path / "site")
    site.restore(second_candidate)
    died = site.run("publish", "Churn", crash_at=f"publish/{point}")
    assert died.status == -signal.SIGKILL, died
    pointer = site.pointer()
    assert pointer is not None
    swapped = POINTS.index(point) >= POINTS.index("point/effect")
    assert (pointer.generation, pointer.version) == ((2, "0.1.1") if swapped else (1, "0.1.0"))
    resumed = site.run("jobs", "resume")
    assert resumed.status == 0, resumed
    assert site.picture() == undisturbed


def test_a_publish_killed_after_each_step_in_turn_is_carried_to_its_end(
    estate: Estate, store: str, tmp_path: Path, second_candidate: Saved, undisturbed: dict[str, Any]
) -> None:
    site = new_site(estate, store, tmp_path / "site")
    site.restore(second_candidate)
    command = ("publish", "Churn")
    for step in STEPS:
        died = site.run(*command, crash_at=f"publish/{step}/effect")
        assert died.status == -signal.SIGKILL, (step, died)
        assert site.pointer() is not None
        command = ("jobs", "resume")
    assert outcomes(site.ok("jobs", "resume")) == [("publish", "published")]
    assert site.picture() == undisturbed


@pytest.mark.parametrize("step", STEPS)
def test_what_a_killed_publish_left_is_made_to_agree_by_sync_production_alone(
    estate: Estate, tmp_path: Path, second_candidate: Saved, step: str
) -> None:
    site = local_site(estate, tmp_path / "site")
    site.restore(second_candidate)
    died = site.run("publish", "Churn", crash_at=f"publish/{step}/effect")
    assert died.status == -signal.SIGKILL, died
    other = Site(estate, tmp_path / "other", site.url)
    assert other.ok("sync-production")["jobs"][-1]["outcome"] == "synced"
    pointer, served = site.pointer(), site.served()
    assert pointer is not None
    assert served is not None
    told = served["metadata"]
    assert (served["artifact"], told["version"], told["generation"]) == (
        pointer.sha256, pointer.version, pointer.generation,
    )  # fmt: skip
    rows = [row["version"] for row in estate.tables()["model_metadata"] if row["status"] == "production"]
    assert rows == [pointer.version]
    # And what it has done is not in the way of the publish itself.
    assert outcomes(site.ok("jobs", "resume")) == [("publish", "published")]
    after = site.pointer()
    assert after is not None
    assert (after.generation, after.version) == (2, "0.1.1")


def test_readers_find_a_complete_model_at_every_moment_of_kills_and_resumes(
    estate: Estate, store: str, tmp_path: Path, second_candidate: Saved
) -> None:
    site = new_site(estate, store, tmp_path / "site")
    site.restore(second_candidate)
    with reader(site) as seen:
        for step in ("upload", "archive", "swap", "point", "switch"):
            site.run("publish", "Churn", crash_at=f"publish/{step}/effect")
        assert site.run("jobs", "resume").status == 0
    generations = [generation for generation in seen if generation is not None]
    assert len(generations) == len(seen) > 10
    assert generations == sorted(generations)
    assert set(generations) <= {1, 2}
    assert generations[0] == 1


class reader:  # noqa: N801 -- reads as a context manager
    """Follows the pointer without a pause in a thread of its own; yields the generations that it saw."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._seen: list[int | None] = []
        self._wrong: list[BaseException] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> list[int | None]:
        self._thread.start()
        return self._seen

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._wrong:
            raise self._wrong[0]

    def _read(self) -> None:
        store = open_store(self._site.url, self._site.connection_string)
        try:
            while not self._stop.wait(0.005):
                pointer = checked_pointer(store, "Churn")
                self._seen.append(None if pointer is None else pointer.generation)
        except BaseException as wrong:  # noqa: BLE001 -- raised in the test's own thread
            self._wrong.append(wrong)


def test_the_undisturbed_publish_is_what_the_protocol_promises(
    undisturbed: dict[str, Any], second_candidate: Saved
) -> None:
    tables, served, events = undisturbed["tables"], undisturbed["served"], undisturbed["events"]
    assert [(row["version"], row["status"]) for row in tables["model_metadata"]] == [
        ("0.1.0", "deprecated"),
        ("0.1.1", "production"),
    ]
    assert [row["version"] for row in tables["model_baselines"]] == ["0.1.0", "0.1.1"]
    assert len(events) == 1
    assert (events[0]["generation"], events[0]["load"]["version"], events[0]["drop"]["version"]) == (
        2,
        "0.1.1",
        "0.1.0",
    )
    assert (
        events[0]["load"]["sha256"] == served["artifact"] == served["metadata"]["sha256"] != events[0]["drop"]["sha256"]
    )
    assert undisturbed["keys"] == ["model:Churn:pkl", "model_events", "model_metadata:Churn", "prod_models"]
