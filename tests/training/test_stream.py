"""Training in blocks: what it learns, and that being killed changes nothing."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest

from servicectl import log
from servicectl.errors import BadData, ConfigError, TryAgain
from servicectl.training import blocks, floor, stream
from servicectl.training.frame import read, split
from servicectl.training.judge import judge
from servicectl.training.parquet import SnapshotFile
from servicectl.training.preprocess import preprocessing
from servicectl.training.servable import _canary_rows
from servicectl.training.spec import GateSpec, ProductFile, TrainingSpec, Verdict
from servicectl.training.survey import Survey
from tests.training.making import SGD, bank_spec, bike_spec, in_blocks, mixed_spec, storm_spec

KILL_POINTS = ("training/survey/saved", "training/fit/2", "training/fit/before", "training/model/before")


def surveyed(path: Path, spec: TrainingSpec) -> tuple[SnapshotFile, Any, Survey]:
    file = SnapshotFile(path, spec)
    outline = file.outline()
    survey = Survey.empty(outline)
    for piece in outline.training:
        survey.first(file.table(piece, survey.columns(spec, 0)), file, outline)
    for number in range(1, survey.passes):
        survey.prepare(number)
        for piece in outline.training:
            survey.later(file.table(piece, survey.columns(spec, number)), spec, number)
        survey.finish(number)
    return file, outline, survey


def judged(spec: TrainingSpec, snapshot: Path, challenger: ProductFile, champion: ProductFile | None = None) -> Verdict:
    return judge(
        floor.JudgeRequest(spec=spec, gate=GateSpec(), snapshot=str(snapshot), challenger=challenger, champion=champion)
    )


def test_the_split_is_the_one_made_in_memory(mixed: Path) -> None:
    for spec in (mixed_spec(), mixed_spec(embargo_s=400.0), mixed_spec(heldout_fraction=0.37)):
        parts = split(read(mixed, spec), spec)
        outline = SnapshotFile(mixed, spec).outline()

        assert (outline.rows_trained, outline.rows_heldout) == (len(parts.training), len(parts.heldout))
        assert (outline.trained_from, outline.trained_until) == (parts.training.times[0], parts.training.times[-1])
        assert outline.heldout_from == parts.heldout.times[0]


def test_preprocessing_made_from_statistics_is_the_one_fitted_in_memory(mixed: Path) -> None:
    spec = mixed_spec()
    file, outline, survey = surveyed(mixed, spec)
    made = preprocessing(survey, spec, outline)
    rows = split(read(mixed, spec), spec).training
    from servicectl.training.fit import _pipeline

    fitted = _pipeline(rows, spec).named_steps["columns"].fit(rows.frame())
    expected = fitted.transform(rows.frame())
    frame = rows.frame()

    np.testing.assert_allclose(made.fitted(spec, outline).transform(frame), expected, rtol=1e-5, atol=1e-6)
    found = np.empty((len(rows), made.width), dtype=np.float32)
    start = 0
    for piece in outline.training:
        made.matrix(file.table(piece, spec.features), outline, found[start : start + len(piece)])
        start += len(piece)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    ours, theirs = made.fitted(spec, outline), fitted
    for name in ("numeric", "coded", "text"):
        mine, stock = ours.named_transformers_[name], theirs.named_transformers_[name]
        assert set(vars(mine[0])) == set(vars(stock[0]))
        assert set(vars(mine[1])) == set(vars(stock[1]))
        if name != "text":
            assert mine[0].statistics_.tolist() == pytest.approx(stock[0].statistics_.tolist(), rel=1e-5)


def test_a_model_trained_in_blocks_is_as_good_as_one_trained_in_memory(tmp_path: Path, bank_after: Path) -> None:
    # Logistic regression both times; gradients that wander end close by, not at the same place.
    params = {"loss": "log_loss", "alpha": 1e-4}
    spec = bank_spec(metric="roc_auc", estimator=SGD, params=params)
    scores = {}
    for mode in ("memory", "streaming"):
        changed = bank_spec(metric="roc_auc", estimator=SGD, params=params, training=mode)
        trained = in_blocks(bank_after, changed, tmp_path / mode)
        scores[mode] = judged(spec, bank_after, trained.model).challenger["roc_auc"]

    assert scores["streaming"] == pytest.approx(scores["memory"], abs=0.03)
    assert scores["streaming"] > 0.55


def test_the_baseline_streamed_is_the_one_of_memory(tmp_path: Path, mixed: Path) -> None:
    documents = []
    for mode in ("memory", "streaming"):
        trained = in_blocks(mixed, mixed_spec(training=mode, params={"max_iter": 5}), tmp_path / mode)
        documents.append(json.loads(Path(trained.baseline.path).read_bytes()))
    memory, streamed = documents

    assert streamed.keys() == memory.keys()
    assert streamed["label"] == memory["label"]
    for name, facts in memory["features"].items():
        found = streamed["features"][name]
        if facts["kind"] == "categorical" or facts["count"] == 0:
            assert found == facts
            continue
        assert found["histogram"] == facts["histogram"]
        for key in ("count", "nulls", "mean", "std", "min", "max"):
            assert found[key] == pytest.approx(facts[key], rel=1e-9)
        assert found["quantiles"] == pytest.approx(facts["quantiles"], rel=1e-5)


def test_raw_rows_are_kept_as_a_sample_alike_in_both_modes(tmp_path: Path, mixed: Path) -> None:
    samples = []
    for mode in ("memory", "streaming"):
        trained = in_blocks(mixed, mixed_spec(training=mode, params={"max_iter": 5}), tmp_path / mode)
        assert trained.sample is not None
        with duckdb.connect() as connection:
            samples.append(connection.execute(f"SELECT * FROM '{trained.sample.path}'").fetchall())

    assert len(samples[0]) == 20_000
    assert repr(samples[0]) == repr(samples[1])


def test_a_block_model_is_judged_and_checked_by_its_held_out_rows_in_blocks(tmp_path: Path, mixed: Path) -> None:
    trained = in_blocks(mixed, mixed_spec(), tmp_path / "m")
    in_parts, memory = mixed_spec(), mixed_spec(training="memory")
    streamed = judged(in_parts, mixed, trained.model)
    whole = judged(memory, mixed, trained.model)

    assert streamed.rows == whole.rows
    assert streamed.challenger == pytest.approx(whole.challenger)
    assert streamed.reason == whole.reason
    canaries = [_canary_rows(mixed, spec, None)[0] for spec in (in_parts, memory)]
    assert len(canaries[0]) == 24
    assert repr(canaries[0]) == repr(canaries[1])


def test_a_regression_in_blocks(tmp_path: Path, bikes: Path) -> None:
    spec = bike_spec(estimator="sklearn.linear_model.SGDRegressor", training="streaming")
    trained = in_blocks(bikes, spec, tmp_path / "m")
    model = pickle.loads(Path(trained.model.path).read_bytes())
    held = split(read(bikes, spec), spec).heldout

    assert model.score(held.frame(), held.labels) > 0.4
    assert trained.curve[-1].rows > len(held)
    assert judged(spec, bikes, trained.model).decision == "PROMOTE"


def test_text_labels_in_blocks_are_coded_as_in_memory(tmp_path: Path, storms: Path) -> None:
    spec = storm_spec(estimator=SGD, params={"class_weight": "balanced"})
    digests = {}
    for mode in ("memory", "streaming"):
        changed = storm_spec(estimator=SGD, params={"class_weight": "balanced"}, training=mode)
        digests[mode] = in_blocks(storms, changed, tmp_path / mode)

    assert digests["streaming"].label_codes == digests["memory"].label_codes
    found = judged(spec, storms, digests["streaming"].model, digests["memory"].model)
    assert found.champion is not None
    assert found.challenger["accuracy"] > 0.5


@pytest.mark.parametrize("point", KILL_POINTS)
def test_a_training_killed_anywhere_gives_the_same_model_afterwards(
    tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch, point: str, whole_run: str
) -> None:
    spec = mixed_spec()
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    monkeypatch.setenv("SERVICECTL_CRASH_AT", point)
    with pytest.raises(TryAgain, match="killed"):
        floor.train(spec, mixed, tmp_path / "first", tmp_path / "checkpoints")
    assert not list((tmp_path / "first").iterdir())
    monkeypatch.delenv("SERVICECTL_CRASH_AT")
    before = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    trained = in_blocks(mixed, spec, tmp_path / "second", tmp_path / "checkpoints")

    assert trained.model.sha256 == whole_run
    assert "survey.checkpoint" in before
    assert ("fit.checkpoint" in before) == (point not in ("training/survey/saved", "training/fit/before"))


def interrupted(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, at: int) -> list[int]:
    """Let the `at`-th call of a function fail, once. The calls that were made, by number."""
    calls: list[int] = []
    real = getattr(owner, name)

    def failing(*given: Any, **named: Any) -> Any:
        calls.append(len(calls) + 1)
        if len(calls) == at:
            raise RuntimeError("a bad day")
        return real(*given, **named)

    monkeypatch.setattr(owner, name, failing)
    return calls


def test_within_a_pass_the_fit_goes_on_from_the_pools_that_were_learnt(
    tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_POOL_BYTES", 0)
    monkeypatch.setattr(stream, "_FIT_ROWS", 0)
    spec = mixed_spec(passes=2)
    whole = in_blocks(mixed, spec, tmp_path / "w")
    learnt = interrupted(monkeypatch, stream, "_learn", 4)  # the second pool of the second pass
    with pytest.raises(RuntimeError, match="a bad day"):
        in_blocks(mixed, spec, tmp_path / "m", tmp_path / "kept")
    again = in_blocks(mixed, spec, tmp_path / "m", tmp_path / "kept")

    assert len(learnt) == 5  # four in all, and the one that failed
    assert again.model.sha256 == whole.model.sha256


@pytest.mark.parametrize(("name", "at"), [("first", 5), ("later", 5)])
def test_within_a_pass_the_survey_goes_on_from_the_pieces_that_were_counted(
    tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: int
) -> None:
    monkeypatch.setattr(blocks, "_SURVEY_ROWS", 0)
    spec = mixed_spec(passes=1)
    whole = in_blocks(mixed, spec, tmp_path / "w")
    pieces = len(SnapshotFile(mixed, spec).outline().training)
    counted = interrupted(monkeypatch, Survey, name, at)
    with pytest.raises(RuntimeError, match="a bad day"):
        in_blocks(mixed, spec, tmp_path / "m", tmp_path / "kept")
    again = in_blocks(mixed, spec, tmp_path / "m", tmp_path / "kept")

    assert len(counted) == pieces + 1
    assert again.model.sha256 == whole.model.sha256
    assert Path(again.baseline.path).read_bytes() == Path(whole.baseline.path).read_bytes()


def test_categories_that_training_never_saw_are_treated_alike_in_both_modes(tmp_path: Path, mixed: Path) -> None:
    frame = pd.DataFrame(
        {
            "a": [1.0, np.nan, 3.0],
            "word": pd.Series(["never seen", "w1", np.nan], dtype=object),
            "b": [1.0, 2.0, 3.0],
            "code": [99.0, np.nan, 1.0],
            "digits": [2.0, 77.0, np.nan],
            "never": [np.nan, 5.0, np.nan],
        }
    )
    found = {}
    for mode in ("memory", "streaming"):
        trained = in_blocks(mixed, mixed_spec(training=mode, params={"max_iter": 5}), tmp_path / mode)
        model = pickle.loads(Path(trained.model.path).read_bytes())
        found[mode] = model[:-1].transform(frame)
        assert len(model.predict(frame)) == 3

    np.testing.assert_allclose(found["streaming"], found["memory"], rtol=1e-5, atol=1e-6)
    one_hot = found["memory"][:, 3:]
    assert one_hot.sum(axis=1).tolist() == [1, 2, 3]  # of three categories: two unknown, one, none


def test_the_learning_curve_is_told_as_it_grows(tmp_path: Path, mixed: Path) -> None:
    heard: list[str] = []
    log.on_progress(heard.append)
    (tmp_path / "m").mkdir()
    try:
        trained = floor.train(mixed_spec(passes=20), mixed, tmp_path / "m")
    finally:
        log.on_progress(None)

    points = [line for line in heard if line.startswith("pass ")]
    assert len(points) == len(trained.curve) > 1
    assert f"{trained.curve[0].rows:,} rows learnt: score {trained.curve[0].score:.4f}" in points[0]


@pytest.fixture(scope="session")
def whole_run(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a run that nothing interrupted."""
    return in_blocks(mixed, mixed_spec(), tmp_path_factory.mktemp("whole")).model.sha256


def test_a_damaged_checkpoint_is_not_believed(tmp_path: Path, mixed: Path, whole_run: str) -> None:
    spec = mixed_spec()
    kept = tmp_path / "checkpoints"
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    in_blocks(mixed, spec, tmp_path / "first", kept)
    for path in kept.iterdir():
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    assert in_blocks(mixed, spec, tmp_path / "second", kept).model.sha256 == whole_run


def test_a_checkpoint_of_another_spec_is_not_taken(tmp_path: Path, mixed: Path) -> None:
    for name in ("one", "two", "alone"):
        (tmp_path / name).mkdir()
    kept = tmp_path / "checkpoints"
    in_blocks(mixed, mixed_spec(passes=2), tmp_path / "one", kept)
    other = mixed_spec(passes=2, params={"alpha": 0.01})

    assert (
        in_blocks(mixed, other, tmp_path / "two", kept).model.sha256
        == in_blocks(mixed, other, tmp_path / "alone").model.sha256
    )


def test_rows_out_of_order_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with duckdb.connect() as connection:
        connection.execute(
            "COPY (SELECT 'e' AS entity_id, TIMESTAMP '2026-01-01' + to_seconds((i * 7) % 100) AS event_timestamp,"
            f" i % 2 AS y, i AS a FROM range(100) AS t(i)) TO '{path}' (FORMAT parquet)"
        )
    spec = TrainingSpec(model_id="M", label="y", features=("a",), estimator=SGD, training="streaming")
    with pytest.raises(BadData, match="not ordered by 'event_timestamp'"):
        in_blocks(path, spec, tmp_path / "m")


def test_too_many_rows_for_memory_are_an_error_that_names_the_ways_out(tmp_path: Path, mixed: Path) -> None:
    one_pass = mixed_spec(training="streaming", estimator="sklearn.linear_model.LogisticRegression")
    with pytest.raises(ConfigError, match="no partial_fit") as refused:
        in_blocks(mixed, one_pass, tmp_path / "a")
    assert "SGDClassifier" in refused.value.cure

    small = mixed_spec(training="memory", memory_mb=305)
    with pytest.raises(ConfigError, match=r"need about \d+ MiB in memory, more than training.memory_mb = 305") as large:
        in_blocks(mixed, small, tmp_path / "b")
    assert "training.max_rows" in large.value.cure


def test_auto_goes_to_blocks_when_the_estimate_does_not_fit(tmp_path: Path, mixed: Path) -> None:
    trained = in_blocks(mixed, mixed_spec(training="auto", memory_mb=305, passes=None), tmp_path / "a")
    roomy = in_blocks(mixed, mixed_spec(training="auto", params={"max_iter": 5}), tmp_path / "b")

    assert (trained.training, roomy.training) == ("streaming", "memory")
    assert trained.estimate_mb is not None
    assert trained.estimate_mb > 305
    assert trained.passes == 50
