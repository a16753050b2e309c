"""A user's own trainer, installed as a package of its own and run through the floor."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from servicectl.errors import ConfigError, ServicectlError, TryAgain
from servicectl.training import blocks, floor, trainers
from servicectl.training.servable import NotServable, foresee
from servicectl.training.spec import GateSpec, Trained, TrainingSpec
from tests.training.making import bank_spec, in_blocks, mixed_spec

CODE = '''
"""Logistic regression by plain gradient steps, as somebody who knows nothing of servicectl's inside would write it."""
import warnings
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression


class Steps:
    def prepare(self, spec, schema):
        assert schema.codes, "two classes, please"
        if spec.params.get("lock"):
            return {"lock": __import__("threading").Lock()}
        return {"w": np.zeros(len(schema.columns) + 1), "rate": spec.params["rate"], "calls": 0,
                "schema": schema, "log": spec.params.get("log")}

    def fit(self, state, blocks):
        state["calls"] += 1
        if state["log"]:
            with Path(state["log"]).open("a") as log:
                print(state["calls"], file=log)
            if Path(state["log"] + ".stop").exists() and state["calls"] == 4:
                raise RuntimeError("a bad day")
        if state["rate"] < 0:
            raise RuntimeError("backwards")
        if state["rate"] == 0:
            return None
        for block in blocks:
            x = np.c_[block.x, np.ones(len(block.x))]
            guess = 1 / (1 + np.exp(-x @ state["w"]))
            state["w"] -= state["rate"] * x.T @ (guess - block.y) / len(x)
        warnings.warn("all is well")
        return state

    def package(self, state):
        model = LogisticRegression()
        model.coef_, model.intercept_ = state["w"][None, :-1], state["w"][-1:]
        model.classes_, model.n_features_in_ = state["schema"].classes, len(state["w"]) - 1
        return model


class Own(ClassifierMixin, BaseEstimator):
    def __init__(self, stock=None):
        self.stock = stock

    def fit(self, x, y):
        raise NotImplementedError

    def predict(self, x):
        return self.stock.predict(x)


class OwnClass(Steps):
    def package(self, state):
        model = Own(super().package(state))
        model.classes_ = state["schema"].classes
        return model


class Needing(OwnClass):
    needs = ("torch", "tiny_trainer")


class Nothing(Steps):
    def package(self, state):
        return b"weights"


class Half:
    def prepare(self, spec, schema): ...
'''
ENTRY_POINTS = """[servicectl.trainers]
steps = tiny_trainer:Steps
own-class = tiny_trainer:OwnClass
needing = tiny_trainer:Needing
nothing = tiny_trainer:Nothing
half = tiny_trainer:Half
gone = tiny_trainer:Gone
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as pip leaves it, on the path of this process and of those it starts."""
    site = tmp_path / "site"
    facts = site / "tiny_trainer-1.2.dist-info"
    facts.mkdir(parents=True)
    (site / "tiny_trainer.py").write_text(CODE)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-trainer\nVersion: 1.2\n")
    (facts / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.syspath_prepend(str(site))
    return site


def spec_of(name: str, **params: Any) -> TrainingSpec:
    return mixed_spec(estimator=f"trainer:{name}", params={"rate": 0.05} | params, training="auto")


def trained_by(spec: TrainingSpec, snapshot: Path, folder: Path, kept: Path | None = None) -> Trained:
    folder.mkdir(exist_ok=True)
    return floor.train(spec, snapshot, folder, kept)


def test_a_trainer_of_another_package_is_trained_judged_and_servable(
    tmp_path: Path, bank_after: Path, installed: Path
) -> None:
    spec = bank_spec(estimator="trainer:steps", params={"rate": 0.1}, metric="roc_auc")
    trained = trained_by(spec, bank_after, tmp_path / "m")
    verdict = floor.judge(spec, GateSpec(), bank_after, trained.model)
    served = floor.check(spec, bank_after, trained.model, 10)
    model = pickle.loads(Path(trained.model.path).read_bytes())

    assert (trained.estimator, trained.training, trained.libraries["tiny-trainer"]) == (
        "trainer:steps",
        "streaming",
        "1.2",
    )
    assert trained.warnings == ("all is well",)
    assert [name for name, _ in model.steps] == ["columns", "estimator"]
    assert verdict.challenger["roc_auc"] > 0.6
    assert served.libraries_needed == ()


def test_it_is_given_every_row_and_column_by_name(tmp_path: Path, mixed: Path, installed: Path) -> None:
    trained = trained_by(spec_of("steps"), mixed, tmp_path / "m")
    model = pickle.loads(Path(trained.model.path).read_bytes())

    assert trained.label_codes == {"no": 0, "yes": 1}
    assert model.label_classes_ == ["no", "yes"]
    assert model.named_steps["estimator"].n_features_in_ == len(
        ["a", "b", "never", *(f"code={code}" for code in range(3)), *(f"digits={digit}" for digit in range(4))]
    ) + len(["word=missing", *(f"word=w{word}" for word in range(4))])


@pytest.mark.parametrize("point", ["training/trainer/2", "training/trainer/before@3"])
def test_one_that_was_killed_goes_on_and_gives_the_same_model(
    tmp_path: Path, mixed: Path, installed: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    whole = trained_by(spec_of("steps", log=str(tmp_path / "whole.log")), mixed, tmp_path / "whole")
    spec = spec_of("steps", log=str(tmp_path / "log"))
    monkeypatch.setenv("SERVICECTL_CRASH_AT", point)
    with pytest.raises(TryAgain, match="killed"):
        trained_by(spec, mixed, tmp_path / "m", tmp_path / "kept")
    monkeypatch.delenv("SERVICECTL_CRASH_AT")
    again = trained_by(spec, mixed, tmp_path / "m", tmp_path / "kept")

    assert again.model.sha256 == whole.model.sha256
    assert (tmp_path / "whole.log").read_text().split() == ["1", "2", "3"]
    assert (tmp_path / "log").read_text().split() == (
        ["1", "2", "3"] if point == "training/trainer/2" else ["1", "2", "2", "3"]
    )


def test_within_a_pass_it_goes_on_from_the_rows_that_were_learnt(
    tmp_path: Path, mixed: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_POOL_BYTES", 0)
    monkeypatch.setattr(trainers, "_FIT_ROWS", 0)
    monkeypatch.delitem(sys.modules, "tiny_trainer", raising=False)
    whole = in_blocks(mixed, spec_of("steps", log=str(tmp_path / "whole")), tmp_path / "w")
    spec = spec_of("steps", log=str(tmp_path / "log"))
    (tmp_path / "log.stop").touch()
    with pytest.raises(ServicectlError, match="a bad day"):
        in_blocks(mixed, spec, tmp_path / "m", tmp_path / "kept")
    (tmp_path / "log.stop").unlink()
    again = in_blocks(mixed, spec, tmp_path / "m", tmp_path / "kept")

    assert (tmp_path / "log").read_text().split() == ["1", "2", "3", "4", "4", "5", "6"]
    assert again.model.sha256 == whole.model.sha256


def test_a_class_that_service_b_cannot_have_is_refused_with_the_reason(
    tmp_path: Path, mixed: Path, installed: Path
) -> None:
    spec = spec_of("own-class")
    trained = trained_by(spec, mixed, tmp_path / "m")
    refused = floor.judge(spec, GateSpec(), mixed, trained.model)

    assert refused.decision == "REJECT"
    assert "it names tiny_trainer.Own, which is not allowed" in refused.reason
    with pytest.raises(NotServable, match="needs tiny_trainer, which Service B is not known to have"):
        floor.check(spec, mixed, trained.model, 10)


def test_a_class_on_the_allow_list_is_judged_but_the_check_has_only_what_is_really_installed(
    tmp_path: Path, mixed: Path, installed: Path
) -> None:
    # The stand-in for Service B takes nothing from PYTHONPATH.
    spec = spec_of("own-class")
    trained = trained_by(spec, mixed, tmp_path / "m")
    judged = floor.judge(spec, GateSpec(), mixed, trained.model, allowed=("tiny_trainer",))

    assert judged.decision in ("PROMOTE", "REJECT")
    assert "unusable" not in judged.reason
    with pytest.raises(NotServable, match="No module named 'tiny_trainer'"):
        floor.check(spec, mixed, trained.model, 10, ["tiny_trainer"])


def test_what_a_trainer_says_that_it_needs_is_refused_before_the_rows_are_read(
    tmp_path: Path, mixed: Path, installed: Path
) -> None:
    spec = spec_of("needing")
    with pytest.raises(NotServable, match=r"trainer 'needing' needs torch, which Service B is not known to have"):
        floor.train(spec, mixed, tmp_path, libraries=["tiny_trainer"])
    assert not (tmp_path / "checkpoints").exists()

    assert floor.train(spec, mixed, tmp_path, libraries=["tiny-trainer", "torch"]).rows_trained > 0


@pytest.mark.parametrize(
    ("name", "params", "error", "words"),
    [
        ("absent", {}, ConfigError, "there is no trainer 'absent'; installed: gone, half, needing, nothing, own-class, steps"),
        ("gone", {}, ConfigError, r"'gone' \(tiny_trainer:Gone\) cannot be loaded: AttributeError"),
        ("half", {}, ConfigError, "has no method fit, package"),
        ("nothing", {}, ConfigError, "packaged a bytes, which is no estimator"),
        ("steps", {"rate": -1}, ServicectlError, r"failed in fit\(\) at tiny_trainer.py:\d+: RuntimeError: backwards"),
        ("steps", {"rate": 0}, ConfigError, "gave back no state"),
        ("steps", {"lock": True}, ConfigError, "cannot be pickled"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_trainer_is_told_by_its_name(
    tmp_path: Path, mixed: Path, installed: Path, name: str, params: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        floor.train(spec_of(name, **params), mixed, tmp_path)
    assert not (tmp_path / "model.pkl").exists()


def test_a_trainer_is_not_run_in_memory(tmp_path: Path, mixed: Path, installed: Path) -> None:
    spec = mixed_spec(estimator="trainer:steps", training="memory")
    with pytest.raises(
        ConfigError, match=r"models\.Mixed\.training = \"memory\": the trainer 'steps' is given its rows"
    ):
        floor.train(spec, mixed, tmp_path)


def test_its_memory_is_bounded_like_any_others(tmp_path: Path, mixed: Path, installed: Path) -> None:
    (installed / "tiny_trainer.py").write_text(
        CODE.replace(
            "        for block in blocks:",
            "        hog = [np.ones(1 << 24) for _ in range(9)]\n        for block in blocks:",
        )
    )
    spec = mixed_spec(estimator="trainer:steps", params={"rate": 0.1}, training="auto", memory_mb=600)
    with pytest.raises(ServicectlError, match=r"training\.memory_mb = 600"):
        floor.train(spec, mixed, tmp_path)


def test_a_library_that_is_not_there_is_told_before_a_snapshot_is_taken(installed: Path) -> None:
    def foreseen(estimator: str | None, *libraries: str, any_library: bool = False) -> None:
        foresee(bank_spec(estimator=estimator), libraries, any_library=any_library)

    foreseen(None)
    foreseen("sklearn.tree.DecisionTreeClassifier")
    foreseen("xgboost.XGBClassifier", "xgboost")
    foreseen("xgboost.XGBClassifier", any_library=True)
    foreseen("trainer:steps")
    with pytest.raises(NotServable, match=r"a XGBClassifier .* needs xgboost, which Service B is not known to have"):
        foreseen("xgboost.XGBClassifier", "lightgbm")
    with pytest.raises(ConfigError, match="no_such_library is not installed here"):
        foreseen("no_such_library.Thing", "no_such_library")
    for nonsense in ("LogisticRegression", ".Ridge", "no such.Thing"):
        with pytest.raises(ConfigError, match=rf"models\.Bank\.estimator: there is no '{nonsense}'"):
            foreseen(nonsense)
    with pytest.raises(ConfigError, match="there is no trainer 'stepps'; installed: gone"):
        foreseen("trainer:stepps")
    with pytest.raises(ConfigError, match=r'models\.Bank\.window = "auto" tries several windows in memory'):
        foresee(bank_spec(estimator="trainer:steps", window_auto=True), (), any_library=False)
