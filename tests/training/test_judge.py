from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sklearn.dummy import DummyClassifier, DummyRegressor

from servicectl.errors import ConfigError, IntegrityError
from servicectl.training import floor
from servicectl.training.fit import train
from servicectl.training.frame import read, split
from servicectl.training.judge import judge
from servicectl.training.spec import GateSpec, ProductFile, Trained, TrainingSpec, Verdict
from tests.training.making import bank_spec, bike_spec, product, storm_spec


def verdict(snapshot: Path, challenger: ProductFile, spec: TrainingSpec | None = None, **given: Any) -> Verdict:
    """In this process; the child's own process is tested once."""
    gate = given.pop("gate", GateSpec())
    request = floor.JudgeRequest(
        spec=spec or bank_spec(), gate=gate, snapshot=str(snapshot), challenger=challenger, **given
    )
    return judge(request)


def constant(path: Path, snapshot: Path, spec: TrainingSpec, label: float) -> ProductFile:
    rows = split(read(snapshot, spec), spec).training
    kind = DummyClassifier if spec.task == "classification" else DummyRegressor
    model = kind(strategy="constant", constant=int(label))
    return product(path, model.fit(rows.frame(), rows.labels.astype(int)))


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_first_model_is_promoted_when_no_worse_than_a_constant(bank_before: Path, bank_champion: Trained) -> None:
    found = floor.judge(bank_spec(), GateSpec(), bank_before, bank_champion.model)

    assert (found.decision, found.rows, found.champion) == ("PROMOTE", 4000, None)
    assert found.challenger["f1_macro"] == pytest.approx(0.485, abs=0.001)
    assert "no champion" in found.reason
    assert "constant predictor" in found.reason
    assert found.reason.endswith("; WARNING: no better than a constant")


def test_a_configured_floor_decides_over_a_first_model(bank_before: Path, bank_champion: Trained) -> None:
    low = verdict(bank_before, bank_champion.model, gate=GateSpec(floors={"f1_macro": 0.6}))
    high = verdict(bank_before, bank_champion.model, gate=GateSpec(floors={"accuracy": 0.9, "log_loss": 0.3}))

    assert (low.decision, high.decision) == ("REJECT", "PROMOTE")
    assert "f1_macro 0.4849 is worse than the floor 0.6000" in low.reason
    assert "log_loss 0.2247 (lower is better) is not worse than the floor 0.3000" in high.reason


def test_a_first_model_that_learnt_something_is_not_called_a_constant(tmp_path: Path, bikes: Path) -> None:
    trained = train(floor.TrainRequest(spec=bike_spec(), snapshot=str(bikes), folder=str(tmp_path)))

    assert "WARNING" not in verdict(bikes, trained.model, bike_spec()).reason


def test_a_better_challenger_below_a_configured_floor_is_rejected(
    bank_after: Path, bank_champion: Trained, bank_challenger: Trained
) -> None:
    def decided(**floors: float) -> Verdict:
        gate = GateSpec(floors=floors)
        return verdict(bank_after, bank_challenger.model, champion=bank_champion.model, gate=gate)

    low, enough = decided(f1_macro=0.5, accuracy=0.9), decided(f1_macro=0.5, log_loss=1.0)

    assert (low.decision, enough.decision) == ("REJECT", "PROMOTE")
    assert re.search(r"but below the floors: accuracy 0\.\d+ is worse than the floor 0\.9000", low.reason)
    assert low.interval is not None
    assert "f1_macro 0.5" not in low.reason


def test_a_challenger_larger_than_allowed_is_a_verdict_and_is_never_compared(
    bank_after: Path, bank_champion: Trained, bank_challenger: Trained
) -> None:
    small = bank_challenger.model.bytes / 1e6
    for mode in ("judge", "always"):
        gate = GateSpec(max_mb=small * 0.9, mode=mode)
        large = verdict(bank_after, bank_challenger.model, champion=bank_champion.model, gate=gate)
        assert (large.decision, large.interval) == ("REJECT", None)
        assert "serving.max_mb is" in large.reason
        assert large.challenger
    gate = GateSpec(max_mb=small)

    assert verdict(bank_after, bank_challenger.model, champion=bank_champion.model, gate=gate).decision == "PROMOTE"


def test_a_champion_whose_rows_nobody_recorded_is_compared_with_that_said(
    bank_after: Path, bank_champion: Trained, bank_challenger: Trained
) -> None:
    champion, until = bank_champion.model, bank_champion.trained_until
    known = verdict(bank_after, bank_challenger.model, champion=champion, champion_seen_until=until)
    unknown = verdict(bank_after, bank_challenger.model, champion=champion)

    assert (known.champion_rows_unknown, unknown.champion_rows_unknown) == (False, True)
    assert "nobody recorded" not in known.reason
    assert "nobody recorded which rows the champion learnt" in unknown.reason
    assert not verdict(bank_after, bank_challenger.model).champion_rows_unknown


@pytest.mark.parametrize("training", ["memory", "streaming"])
def test_no_more_rows_are_held_out_than_configured_and_that_is_said(
    bank_after: Path, bank_champion: Trained, bank_challenger: Trained, training: Any
) -> None:
    spec = bank_spec(heldout_rows=3000, training=training)
    capped = verdict(bank_after, bank_challenger.model, spec, champion=bank_champion.model)
    whole = verdict(bank_after, bank_challenger.model, bank_spec(training=training), champion=bank_champion.model)

    assert (capped.rows, capped.heldout_capped) == (3000, True)
    assert (whole.rows, whole.heldout_capped) == (7000, False)
    assert "only the newest 3,000 rows" in capped.reason
    assert capped.heldout_until == whole.heldout_until


def test_a_model_worse_than_a_constant_is_not_a_first_model(tmp_path: Path, bikes: Path) -> None:
    found = verdict(bikes, constant(tmp_path / "m.pkl", bikes, bike_spec(), -1000.0), bike_spec())

    assert found.decision == "REJECT"
    assert "worse than the constant predictor" in found.reason


def test_a_challenger_trained_on_the_changed_market_is_promoted(
    bank_after: Path, bank_champion: Trained, bank_challenger: Trained
) -> None:
    found = floor.judge(
        bank_spec(), GateSpec(), bank_after, bank_challenger.model, bank_champion.model, bank_champion.trained_until
    )

    assert found.champion is not None
    assert found.interval is not None
    assert (found.decision, found.rows, found.blocks) == ("PROMOTE", 7000, 30)
    assert found.champion["f1_macro"] == pytest.approx(0.381, abs=0.001)
    assert found.challenger["f1_macro"] == pytest.approx(0.534, abs=0.001)
    assert found.difference == pytest.approx(0.153, abs=0.001)
    assert 0 < found.interval[0] < 0.153 < found.interval[1]
    assert msgspec.json.decode(msgspec.json.encode(found), type=Verdict) == found


def test_the_older_model_is_not_promoted_over_the_newer_one_nor_over_itself(
    bank_after: Path, bank_champion: Trained, bank_challenger: Trained
) -> None:
    worse = verdict(bank_after, bank_champion.model, champion=bank_challenger.model)
    same = verdict(bank_after, bank_challenger.model, champion=bank_challenger.model)

    assert (worse.decision, same.decision) == ("REJECT", "REJECT")
    assert (worse.difference or 0) < 0
    assert same.difference == 0


def test_an_advantage_smaller_than_asked_for_is_not_enough(
    bank_after: Path, bank_champion: Trained, bank_challenger: Trained
) -> None:
    unsure = verdict(
        bank_after, bank_challenger.model, champion=bank_champion.model, gate=GateSpec(min_improvement=0.15)
    )
    small = verdict(bank_after, bank_challenger.model, champion=bank_champion.model, gate=GateSpec(min_improvement=0.3))

    assert (unsure.decision, small.decision) == ("INCONCLUSIVE", "REJECT")
    assert "may be chance" in unsure.reason


def test_rows_that_either_model_has_seen_are_left_out(
    bank_after: Path, bank_champion: Trained, bank_challenger: Trained
) -> None:
    last = read(bank_after, bank_spec()).times[-1].item()
    everything = verdict(bank_after, bank_challenger.model, champion=bank_champion.model, champion_seen_until=last)
    nearly = verdict(
        bank_after,
        bank_challenger.model,
        champion=bank_champion.model,
        champion_seen_until=bank_champion.trained_until,
        challenger_seen_until=last - timedelta(days=2),
    )

    assert (everything.decision, nearly.decision) == ("INCONCLUSIVE", "INCONCLUSIVE")
    assert "already seen" in everything.reason
    assert nearly.heldout_from is not None
    assert nearly.heldout_from.replace(tzinfo=None) > last - timedelta(days=2)
    assert 0 < nearly.rows < 150
    assert "time blocks; at least 15 are needed" in nearly.reason


def test_gate_always_promotes_but_not_nonsense(bank_after: Path, tmp_path: Path, bank_champion: Trained) -> None:
    always = GateSpec(mode="always")
    worse = verdict(bank_after, bank_champion.model, champion=bank_champion.model, gate=always)
    broken = verdict(bank_after, product(tmp_path / "x.pkl", {"not": "a model"}), gate=always)

    assert (worse.decision, worse.reason) == ("PROMOTE", "gate = always")
    assert broken.decision == "REJECT"


def test_predictions_that_are_nan_are_rejected(tmp_path: Path, bikes: Path) -> None:
    rows = split(read(bikes, bike_spec()), bike_spec()).training
    model = DummyRegressor(strategy="mean").fit(rows.frame(), rows.labels)
    model.constant_ = model.constant_ * float("nan")
    found = verdict(bikes, product(tmp_path / "nan.pkl", model), bike_spec())

    assert found.decision == "REJECT"
    assert "NaN" in found.reason


def test_a_champion_that_will_not_load_leaves_the_word_to_configured_floors(
    tmp_path: Path, bank_before: Path, bank_champion: Trained
) -> None:
    content = b"\x80\x05csklearn._gone\nThing\n."
    path = tmp_path / "old.pkl"
    path.write_bytes(content)
    import hashlib

    old = ProductFile(str(path), hashlib.sha256(content).hexdigest(), len(content))
    nothing = verdict(bank_before, bank_champion.model, champion=old)
    floors = verdict(bank_before, bank_champion.model, champion=old, gate=GateSpec(floors={"accuracy": 0.9}))

    assert nothing.decision == "INCONCLUSIVE"
    assert "it cannot be loaded: ModuleNotFoundError" in nothing.reason
    assert "models.Bank.floors" in nothing.reason
    assert floors.decision == "PROMOTE"
    assert "the champion is unusable" in floors.reason


@pytest.mark.parametrize("role", ["challenger", "champion"])
def test_a_file_with_another_digest_is_refused_before_it_is_opened(
    tmp_path: Path, bank_before: Path, bank_champion: Trained, role: str
) -> None:
    canary = tmp_path / "opened"
    bomb = product(tmp_path / "bomb.pkl", Bomb(canary))
    lying = ProductFile(bomb.path, bank_champion.model.sha256, bomb.bytes)
    files = {"challenger": bank_champion.model, "champion": bank_champion.model} | {role: lying}

    with pytest.raises(IntegrityError, match=f"the {role} .* on record is"):
        floor.judge(bank_spec(), GateSpec(), bank_before, files["challenger"], files["champion"])

    assert not canary.exists()


def test_labels_that_training_lacks_count_against_everybody_alike(tmp_path: Path, storms: Path) -> None:
    # The newest 99 % of rows hold classes that the oldest 1 % lack.
    spec = storm_spec(heldout_fraction=0.99, estimator="sklearn.tree.DecisionTreeClassifier", params={"max_depth": 6})
    rich = storm_spec(estimator="sklearn.tree.DecisionTreeClassifier", params={"max_depth": 6})
    for name in ("poor", "rich"):
        (tmp_path / name).mkdir()
    poor_model = train(floor.TrainRequest(spec=spec, snapshot=str(storms), folder=str(tmp_path / "poor")))
    rich_model = train(floor.TrainRequest(spec=rich, snapshot=str(storms), folder=str(tmp_path / "rich")))
    found = verdict(storms, rich_model.model, rich, champion=poor_model.model)

    assert poor_model.label_codes is not None
    assert rich_model.label_codes is not None
    assert len(poor_model.label_codes) < len(rich_model.label_codes)
    # The same number means different labels to the two; they are compared by label.
    assert found.decision == "PROMOTE"
    assert found.challenger["accuracy"] > 0.75


def test_regression_by_an_error_metric_goes_downwards(tmp_path: Path, bikes: Path) -> None:
    spec = bike_spec(metric="mae")
    trained = train(floor.TrainRequest(spec=spec, snapshot=str(bikes), folder=str(tmp_path)))
    flat = constant(tmp_path / "flat.pkl", bikes, spec, 100.0)

    better, worse = (
        verdict(bikes, trained.model, spec, champion=flat),
        verdict(bikes, flat, spec, champion=trained.model),
    )

    assert (better.decision, worse.decision) == ("PROMOTE", "REJECT")
    assert better.champion is not None
    assert better.difference == pytest.approx(better.champion["mae"] - better.challenger["mae"])


def test_any_scorer_of_scikit_learn_can_be_the_metric(
    bank_after: Path, bank_champion: Trained, bank_challenger: Trained
) -> None:
    found = verdict(
        bank_after, bank_challenger.model, bank_spec(metric="balanced_accuracy"), champion=bank_champion.model
    )

    assert (found.decision, found.metric) == ("PROMOTE", "balanced_accuracy")


def test_an_unknown_metric_is_an_error_before_anything_is_read(bank_champion: Trained) -> None:
    with pytest.raises(ConfigError, match=r"models\.Bank\.floors: 'cleverness'"):
        verdict(Path("/nowhere"), bank_champion.model, gate=GateSpec(floors={"cleverness": 1.0}))


def test_an_undecided_verdict_says_how_many_more_rows_it_would_take(
    bank_after: Path, bank_champion: Trained, bank_challenger: Trained
) -> None:
    gate = GateSpec(min_improvement=0.15)
    unsure = verdict(bank_after, bank_challenger.model, champion=bank_champion.model, gate=gate)
    sure = verdict(bank_after, bank_challenger.model, champion=bank_champion.model)

    assert unsure.more_rows is not None
    assert unsure.more_rows > unsure.rows
    assert f"about {unsure.more_rows} more held-out rows" in unsure.reason
    assert sure.more_rows is None


def test_each_earlier_challenger_makes_the_test_stricter(
    bank_after: Path, bank_champion: Trained, bank_challenger: Trained
) -> None:
    found = [
        verdict(
            bank_after, bank_challenger.model, champion=bank_champion.model, gate=GateSpec(earlier_challengers=count)
        )
        for count in (0, 1, 9)
    ]

    assert [round(one.alpha or 0, 6) for one in found] == [0.05, 0.00625, 0.00025]
    lows = [one.interval[0] for one in found if one.interval]
    assert lows == sorted(lows, reverse=True)
    assert lows[0] > lows[2]


def test_a_better_model_that_is_worse_on_a_named_slice_is_not_promoted(
    bank_after: Path, bank_champion: Trained, bank_challenger: Trained
) -> None:
    def decided(**gate: Any) -> Verdict:
        return verdict(bank_after, bank_challenger.model, champion=bank_champion.model, gate=GateSpec(**gate))

    kept = decided(slices={"borrowers": "housing_loan == 1"}, slice_margin=0.5)
    strict = decided(slices={"borrowers": "housing_loan == 1"}, slice_margin=0.0)
    empty = decided(slices={"nobody": "age > 1000"})

    assert kept.decision == "PROMOTE"
    assert set(kept.slices) == {"borrowers"}
    low, high = kept.slices["borrowers"][1:]
    assert strict.decision == ("PROMOTE" if low > 0 else "REJECT" if high < 0 else "INCONCLUSIVE")
    assert empty.decision == "INCONCLUSIVE"
    assert "too few rows" in empty.reason


def test_a_slice_that_cannot_be_read_names_its_key(
    bank_after: Path, bank_champion: Trained, bank_challenger: Trained
) -> None:
    for condition in ("age", "height > 3", "age > old"):
        with pytest.raises(ConfigError, match=r"gate\.slices\.some"):
            verdict(
                bank_after,
                bank_challenger.model,
                champion=bank_champion.model,
                gate=GateSpec(slices={"some": condition}),
            )


def test_a_model_slower_than_allowed_is_rejected(
    bank_after: Path, bank_champion: Trained, bank_challenger: Trained
) -> None:
    slow = verdict(
        bank_after, bank_challenger.model, champion=bank_champion.model, gate=GateSpec(max_predict_ms=0.000001)
    )

    first = verdict(bank_after, bank_challenger.model, gate=GateSpec(max_predict_ms=0.000001))

    assert (slow.decision, first.decision) == ("REJECT", "REJECT")
    assert "gate.max_predict_ms" in slow.reason
