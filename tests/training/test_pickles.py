from __future__ import annotations

import pickle
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from servicectl.training.pickles import Forbidden, Unpickler, is_allowed, refused


def model(estimator: Any) -> Any:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"a": rng.normal(size=80), "b": rng.choice(["x", "y"], size=80)})
    columns = [("n", StandardScaler(), ["a"]), ("c", OneHotEncoder(handle_unknown="ignore"), ["b"])]
    return Pipeline([("columns", ColumnTransformer(columns)), ("model", estimator)]).fit(frame, frame.a > 0)


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(), RandomForestClassifier(5), GradientBoostingClassifier(n_estimators=3, random_state=1), SVC(),
        HistGradientBoostingRegressor(max_iter=3), KNeighborsClassifier(algorithm="kd_tree"),
    ],
    ids=lambda estimator: type(estimator).__name__,
)  # fmt: skip
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_ordinary_models_are_allowed_and_open(estimator: Any, protocol: int) -> None:
    content = pickle.dumps(model(estimator), protocol=protocol)
    assert refused(content) == []
    assert isinstance(Unpickler(content).load(), Pipeline)


class Runs:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def hand_made(module: str, name: str) -> bytes:
    """A pickle of protocol 4 that fetches one member and leaves it on the stack."""
    text = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name))
    return b"\x80\x04" + text + b"\x93."


HIDDEN = {
    "a text below the two names": b"\x80\x04\x8c\x02os\x8c\x06systemK\x000\x93.",
    "names in a persistent id": b"\x80\x04Pos system\n.",
    "an extension code": b"\x80\x04\x82\x01.",
    "GLOBAL of protocol 0": b"cos\nsystem\n.",
    "INST": b"(S'true'\nios\nsystem\n.",
    "not a pickle": b"plain bytes",
    "cut": b"\x80\x04\x8c\x05nu",
}


@pytest.mark.parametrize("how", HIDDEN)
def test_what_is_not_plain_is_refused(how: str) -> None:
    assert refused(HIDDEN[how])
    with pytest.raises(Exception):  # noqa: B017, PT011 -- whatever it is, it does not open
        Unpickler(HIDDEN[how]).load()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("__builtin__", "exec"),
        ("numpy.testing._private.utils", "runstring"), ("numpy", "load"), ("joblib", "load"), ("pandas", "read_pickle"),
        ("functools", "partial"), ("operator", "attrgetter"), ("sklearn.utils", "os.system"), ("sklearn.utils._testing", "SkipTest"),
        ("sklearn.datasets", "Fetch"), ("sklearn.base", "clone"), ("importlib", "import_module"), ("sklearn.externals.x", "Y"),
    ],
)  # fmt: skip
def test_members_that_can_run_something_are_not_allowed(module: str, name: str) -> None:
    assert not is_allowed(module, name)
    assert refused(hand_made(module, name))
    with pytest.raises(Forbidden):
        Unpickler(hand_made(module, name)).load()


def test_a_class_that_an_allowed_module_only_imported_is_refused_when_opened() -> None:
    import sklearn.utils.fixes as module

    content = hand_made("sklearn.utils.fixes", "Path")
    module.Path = Path  # type: ignore[attr-defined]  # a module made up for the attack
    try:
        assert refused(content) == []
        with pytest.raises(Forbidden, match="pathlib"):
            Unpickler(content).load()
    finally:
        del module.Path


def test_a_hostile_pickle_among_honest_things_is_refused_and_never_runs(tmp_path: Path) -> None:
    trace = tmp_path / "opened"
    honest = model(LogisticRegression())
    honest.note = Runs(open, str(trace), "w")
    content = pickle.dumps([OrderedDict(), honest])
    assert refused(content) == ["io.open"]
    with pytest.raises(Forbidden):
        Unpickler(content).load()
    assert not trace.exists()


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_large_model_is_read_from_its_file_without_its_numbers(tmp_path: Path, protocol: int) -> None:
    honest = model(LogisticRegression())
    honest.weights, honest.text = np.ones(4 << 20), "x" * (8 << 20)
    honest.note = Runs(open, str(tmp_path / "opened"), "w")
    content = pickle.dumps(honest, protocol=protocol)
    (tmp_path / "model.pkl").write_bytes(content)
    assert len(content) > 40 << 20
    with (tmp_path / "model.pkl").open("rb") as file:
        tracemalloc.start()
        found = refused(file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found == refused(content) == ["io.open"]
    assert peak < 1 << 20
    assert not (tmp_path / "opened").exists()


def test_a_large_model_that_breaks_off_is_refused() -> None:
    content = pickle.dumps(np.ones(1 << 20), protocol=4)
    assert refused(content) == []
    assert refused(content[: len(content) // 2])


def test_the_configuration_can_allow_more_by_package_module_or_member() -> None:
    assert is_allowed("xgboost.sklearn", "XGBClassifier", ["xgboost"])
    assert is_allowed("xgboost.sklearn", "XGBClassifier", ["xgboost.sklearn.XGBClassifier"])
    assert not is_allowed("xgboost.core", "Booster", ["xgboost.sklearn"])
    assert not is_allowed("xgboosted", "Model", ["xgboost"])
    assert not is_allowed("xgboost", "os.system", ["xgboost"])


def test_a_library_whose_members_are_known_may_name_these_and_no_others() -> None:
    assert is_allowed("xgboost.core", "Booster", ["xgboost"])
    assert is_allowed("xgboost.sklearn", "XGBRegressor", ["lightgbm", "xgboost"])
    assert not is_allowed("xgboost.core", "Booster")
    for module, member in (("xgboost.core", "_load_lib"), ("xgboost.testing", "run_server"), ("xgboost", "collective")):
        assert not is_allowed(module, member, ["xgboost"])
    assert is_allowed("xgboost.callback", "EarlyStopping", ["xgboost", "xgboost.callback"])
    assert is_allowed("lightgbm.basic", "anything", ["lightgbm"])
