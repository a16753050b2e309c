"""XGBoost, in memory and from external memory."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from servicectl.errors import BadData, ConfigError, TryAgain
from servicectl.training import boosting, floor, pickles
from servicectl.training.child import environment
from servicectl.training.frame import read, split
from servicectl.training.judge import judge
from servicectl.training.servable import NotServable, check
from servicectl.training.spec import GateSpec, Trained, TrainingSpec, Verdict
from tests.training.making import bank_spec, bike_spec, in_blocks, mixed_spec, storm_spec, wide_snapshot

XGB = "xgboost.XGBClassifier"
PARAMS = {"n_estimators": 10, "max_depth": 3, "subsample": 0.7, "colsample_bytree": 0.6}
KILL_POINTS = ("training/boosting/1", "training/boosting/before@4", "training/model/before")


def judged(spec: TrainingSpec, snapshot: Path, trained: Trained, allowed: tuple[str, ...] = ("xgboost",)) -> Verdict:
    request = floor.JudgeRequest(
        spec=spec, gate=GateSpec(), snapshot=str(snapshot), challenger=trained.model, allowed=allowed
    )
    return judge(request)


def boosted(**changes: Any) -> TrainingSpec:
    return mixed_spec(**{"estimator": XGB, "params": PARAMS, "passes": None} | changes)


@pytest.fixture(scope="session")
def whole_run(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """From external memory; nothing interrupted it."""
    return in_blocks(mixed, boosted(), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("mode", ["memory", "streaming"])
def test_what_comes_out_is_a_stock_pipeline_with_xgboosts_own_estimator(
    tmp_path: Path, bank_after: Path, mode: str
) -> None:
    from xgboost import XGBClassifier

    spec = bank_spec(metric="roc_auc", estimator=XGB, params={"n_estimators": 30, "max_depth": 3}, training=mode)
    trained = in_blocks(bank_after, spec, tmp_path / mode)
    content = Path(trained.model.path).read_bytes()
    model = pickle.loads(content)

    assert trained.training == mode
    assert trained.libraries["xgboost"]
    assert type(model.named_steps["estimator"]) is XGBClassifier
    assert model.named_steps["estimator"].get_booster().num_boosted_rounds() == 30
    assert {name for name in pickles.names_in(content) if name[0].startswith("xgboost")} == {
        ("xgboost.core", "Booster"), ("xgboost.sklearn", "XGBClassifier"),
    }  # fmt: skip
    assert judged(spec, bank_after, trained).challenger["roc_auc"] > 0.65


def test_from_external_memory_it_learns_what_it_learns_in_memory(tmp_path: Path, bikes: Path) -> None:
    scores = []
    for mode in ("memory", "streaming"):
        spec = bike_spec(estimator="xgboost.XGBRegressor", params={"n_estimators": 60}, training=mode)
        trained = in_blocks(bikes, spec, tmp_path / mode)
        scores.append(judged(spec, bikes, trained).challenger["r2"])

    assert scores[1] == pytest.approx(scores[0], abs=0.02)
    assert scores[1] > 0.6


def test_text_labels_of_many_classes_are_coded_alike_in_both(tmp_path: Path, storms: Path) -> None:
    found = {}
    for mode in ("memory", "streaming"):
        spec = storm_spec(estimator=XGB, params={"n_estimators": 10}, training=mode)
        trained = in_blocks(storms, spec, tmp_path / mode)
        model = pickle.loads(Path(trained.model.path).read_bytes())
        rows = split(read(storms, spec), spec).heldout
        found[mode] = (trained.label_codes, model.predict_proba(rows.frame()).shape)
        assert judged(spec, storms, trained).challenger["accuracy"] > 0.8

    assert found["memory"] == found["streaming"]


def test_training_again_gives_the_same_bytes(tmp_path: Path, mixed: Path, whole_run: Trained) -> None:
    assert in_blocks(mixed, boosted(), tmp_path / "again").model.sha256 == whole_run.model.sha256
    in_memory = boosted(training="memory")
    assert len({in_blocks(mixed, in_memory, tmp_path / "m").model.sha256 for _ in range(2)}) == 1


@pytest.mark.parametrize("point", KILL_POINTS)
def test_a_training_killed_anywhere_gives_the_same_model_afterwards(
    tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch, point: str, whole_run: Trained
) -> None:
    kept = tmp_path / "checkpoints"
    (tmp_path / "first").mkdir()
    monkeypatch.setenv("SERVICECTL_CRASH_AT", point)
    with pytest.raises(TryAgain, match="killed"):
        floor.train(boosted(), mixed, tmp_path / "first", kept)
    monkeypatch.delenv("SERVICECTL_CRASH_AT")
    before = (kept / "boosting.checkpoint").stat().st_mtime_ns
    left = (kept / "pages").exists()
    trained = in_blocks(mixed, boosted(), tmp_path / "first", kept)

    assert trained.model.sha256 == whole_run.model.sha256
    assert ((kept / "boosting.checkpoint").stat().st_mtime_ns == before) == (point == "training/model/before")
    assert left == (point != "training/model/before")
    assert not (kept / "pages").exists()


def test_it_goes_on_from_the_rounds_that_were_saved(
    tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch, whole_run: Trained
) -> None:
    kept = tmp_path / "checkpoints"
    (tmp_path / "first").mkdir()
    monkeypatch.setenv("SERVICECTL_CRASH_AT", "training/boosting/3")
    with pytest.raises(TryAgain, match="killed"):
        floor.train(boosted(), mixed, tmp_path / "first", kept)
    monkeypatch.delenv("SERVICECTL_CRASH_AT")
    trace = tmp_path / "trace"
    monkeypatch.setenv("SERVICECTL_CRASH_TRACE", str(trace))
    in_blocks(mixed, boosted(), tmp_path / "second", kept)

    assert [line.split()[1] for line in trace.read_text().splitlines() if "boosting/" in line and line[-1].isdigit()] == [
        "training/boosting/1", "training/boosting/2",
    ]  # fmt: skip


def test_the_rows_lie_on_disk_and_not_in_one_page(tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = boosted(params=PARAMS | {"subsample": 1.0})
    whole = in_blocks(mixed, spec, tmp_path / "whole")
    monkeypatch.setattr(boosting, "_PAGE_BYTES", 4 * 16 * 2048)
    paged = in_blocks(mixed, spec, tmp_path / "paged")
    rows = split(read(mixed, spec), spec).heldout.frame()
    answers = [pickle.loads(Path(one.model.path).read_bytes()).predict_proba(rows) for one in (whole, paged)]

    np.testing.assert_allclose(answers[0], answers[1], atol=0.02)


def test_auto_goes_to_external_memory_when_the_estimate_does_not_fit(tmp_path: Path, mixed: Path) -> None:
    assert in_blocks(mixed, boosted(training="auto", memory_mb=305), tmp_path / "a").training == "streaming"
    assert in_blocks(mixed, boosted(training="auto"), tmp_path / "b").training == "memory"


@pytest.mark.parametrize("mode", ["memory", "streaming"])
def test_classes_that_do_not_count_from_0_are_an_error_that_says_so(tmp_path: Path, mode: str) -> None:
    spec = TrainingSpec(model_id="M", label="y", features=("a",), estimator=XGB, training=mode)
    select = "SELECT 'e' AS entity_id, TIMESTAMP '2026-01-01' + to_seconds(i) AS event_timestamp, 1 + i % 2 AS y, i AS a FROM range(100) AS t(i)"  # fmt: skip
    with pytest.raises(BadData, match=r"learns the classes 0, 1, 2 ... only; 'y' holds 1, 2"):
        in_blocks(wide_snapshot(tmp_path / "x.parquet", select, spec), spec, tmp_path / "m")


@pytest.mark.parametrize(
    ("params", "mode", "words"),
    [
        ({"nonsense": 1}, "memory", 'no use for "nonsense"'),
        ({"nonsense": 1}, "streaming", 'no use for "nonsense"'),
        ({"max_depth": "deep"}, "streaming", r"expect int but value='deep' \(correct"),
        ({"early_stopping_rounds": 3}, "memory", "needs rows to stop by"),
        ({"tree_method": "exact"}, "streaming", "when it learns in blocks: Only `hist`"),
    ],
)
def test_params_that_xgboost_does_not_take_are_told_before_the_rows_are_read(
    tmp_path: Path, mixed: Path, params: dict[str, Any], mode: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=rf"models\.Mixed\.params: .*{words}"):
        in_blocks(mixed, boosted(params=params, training=mode), tmp_path / "m")
    assert not (tmp_path / "m/checkpoints").exists()


_COUNTED = """
import os
import numpy as np
from xgboost import XGBRegressor
rows = np.random.default_rng(1).normal(size=(5000, 4))
before = len(os.listdir("/proc/self/task"))
XGBRegressor(n_jobs=8, n_estimators=2).fit(rows, rows[:, 0])
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_more_threads_than_configured_are_not_had_by_asking_for_them() -> None:
    more = subprocess.run([sys.executable, "-c", _COUNTED], env=environment(1), capture_output=True, text=True).stdout

    assert more == "0\n"


def test_each_round_draws_rows_of_its_own(tmp_path: Path, mixed: Path) -> None:
    # So slow a learner that rounds differ by their rows alone.
    params = {"n_estimators": 10, "max_depth": 2, "subsample": 0.2, "learning_rate": 1e-9}
    trained = in_blocks(mixed, boosted(params=params), tmp_path / "m")
    model = pickle.loads(Path(trained.model.path).read_bytes())
    splits = [re.sub("leaf=.*", "", tree) for tree in model.named_steps["estimator"].get_booster().get_dump()]

    assert len(set(splits)) == 10


def test_a_service_b_without_xgboost_is_told_by_name_and_one_with_it_gets_the_model(
    mixed: Path, whole_run: Trained
) -> None:
    def checked(*libraries: str) -> Any:
        return check(
            floor.CheckRequest(
                spec=boosted(), snapshot=str(mixed), model=whole_run.model, max_mb=10, libraries=libraries
            )
        )

    with pytest.raises(NotServable, match="needs xgboost, which Service B is not known to have"):
        checked()
    served = checked("xgboost")

    assert served.libraries_needed == ("xgboost",)
    assert {row.prediction for row in served.canary} <= {0.0, 1.0}


def test_it_is_opened_only_where_the_configuration_names_xgboost(mixed: Path, whole_run: Trained) -> None:
    refused = judged(boosted(), mixed, whole_run, allowed=())

    assert refused.decision == "REJECT"
    assert "xgboost.core.Booster, xgboost.sklearn.XGBClassifier, which is not allowed" in refused.reason


def test_a_memory_limit_that_is_met_is_told_as_one(tmp_path: Path, mixed: Path) -> None:
    spec = msgspec.structs.replace(boosted(params={"n_estimators": 2, "max_depth": 3, "max_bin": 2**24}), memory_mb=305)
    with pytest.raises(Exception, match=r"training\.memory_mb = 305") as raised:
        floor.train(spec, mixed, tmp_path)
    assert "memory_mb" in str(getattr(raised.value, "cure", ""))
