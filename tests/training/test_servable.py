from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from servicectl.errors import IntegrityError, ServicectlError
from servicectl.files import sha256_of
from servicectl.training import confine, floor
from servicectl.training.child import WORKER
from servicectl.training.fit import train
from servicectl.training.frame import Rows, read, split
from servicectl.training.servable import NotServable, check, modules_needed
from servicectl.training.spec import ProductFile, Servability, Trained
from tests.training.making import bank_spec, product, storm_spec, wide_snapshot
from tests.training.test_judge import Bomb


def checked(snapshot: Path, model: ProductFile, max_mb: float = 100, libraries: tuple[str, ...] = ()) -> Servability:
    """In this process, which starts only the isolated one."""
    spec = bank_spec()
    return check(floor.CheckRequest(spec=spec, snapshot=str(snapshot), model=model, max_mb=max_mb, libraries=libraries))


def rows(snapshot: Path) -> Rows:
    return split(read(snapshot, bank_spec()), bank_spec()).training


def by_name(*steps: tuple[str, Any]) -> Pipeline:
    return Pipeline([("columns", ColumnTransformer([("all", "passthrough", list(bank_spec().features))])), *steps])


def test_a_trained_model_is_servable_and_comes_with_requests_to_try(bank_after: Path, bank_challenger: Trained) -> None:
    found = floor.check(bank_spec(), bank_after, bank_challenger.model, 100)

    assert len(found.canary) == 24
    assert set(found.canary[0].features) == set(bank_spec().features)
    assert {row.prediction for row in found.canary} == {0.0, 1.0}
    assert found.libraries_needed == ()
    assert found.size_mb < 0.1
    assert "no_new_privs" in found.confinement


def test_text_and_missing_features_are_served_alike(tmp_path: Path) -> None:
    spec = storm_spec(
        label="wind",
        task="regression",
        features=("status", "month", "pressure", "hurricane_force_diameter"),
        categorical=("status", "month"),
    )
    data = Path(__file__).resolve().parents[1] / "data/atlantic_storms.parquet"
    select = f"SELECT * REPLACE (CASE WHEN hour <> 6 THEN status END AS status) FROM '{data}'"
    snapshot = wide_snapshot(tmp_path / "x.parquet", select, spec)
    trained = train(floor.TrainRequest(spec=spec, snapshot=str(snapshot), folder=str(tmp_path)))

    found = floor.check(spec, snapshot, trained.model, 100)

    texts = {row.features["status"] for row in found.canary}
    assert None in texts
    assert any(isinstance(text, str) for text in texts)
    assert all(isinstance(row.features["month"], float) for row in found.canary)


@pytest.mark.parametrize("fitted_on", ["array", "frame"])
def test_a_model_that_does_not_take_columns_by_name_is_refused(
    tmp_path: Path, bank_before: Path, fitted_on: str
) -> None:
    given = rows(bank_before)
    frame = given.frame()
    model = LinearRegression().fit(frame.to_numpy() if fitted_on == "array" else frame, given.labels)

    with pytest.raises(NotServable, match=r"columns (are )?shuffled"):
        checked(bank_before, product(tmp_path / "m.pkl", model))


def test_an_order_that_changes_only_the_confidence_is_noticed(tmp_path: Path, bank_before: Path) -> None:
    given = rows(bank_before)
    array = given.frame().to_numpy()
    model = DecisionTreeClassifier(min_samples_leaf=2000, random_state=0).fit(array, given.labels)
    assert set(model.predict(array)) == {0}  # rare positives: no leaf's majority

    with pytest.raises(NotServable, match="with another confidence"):
        checked(bank_before, product(tmp_path / "m.pkl", model))


@pytest.mark.parametrize("kind", ["joblib", "compressed", "text", "nothing"])
def test_a_file_that_is_no_plain_pickle_is_refused_in_words(tmp_path: Path, bank_before: Path, kind: str) -> None:
    given = rows(bank_before)
    model = by_name(("model", DecisionTreeClassifier(max_depth=3))).fit(given.frame(), given.labels)
    path = tmp_path / "m.pkl"
    if kind in ("joblib", "compressed"):
        joblib.dump(model, path, compress=3 if kind == "compressed" else 0)
    else:
        path.write_bytes(b"a model, honestly" if kind == "text" else b"")

    with pytest.raises(NotServable, match="is no plain pickle"):
        checked(bank_before, ProductFile(str(path), sha256_of(path), path.stat().st_size))


def test_a_model_that_answers_text_is_refused(tmp_path: Path, bank_before: Path) -> None:
    given = rows(bank_before)
    model = by_name(("scale", StandardScaler()), ("model", LogisticRegression())).fit(
        given.frame(), np.where(given.labels == 1, "yes", "no")
    )

    with pytest.raises(NotServable, match="not a number"):
        checked(bank_before, product(tmp_path / "m.pkl", model))


def test_a_model_above_the_size_limit_is_refused(bank_before: Path, bank_champion: Trained) -> None:
    with pytest.raises(NotServable, match=r"serving\.max_mb allows 0\.001"):
        checked(bank_before, bank_champion.model, max_mb=0.001)


def test_a_model_that_needs_this_program_or_an_unknown_library_is_refused(tmp_path: Path, bank_before: Path) -> None:
    given = rows(bank_before)
    ours, theirs = (
        by_name(("model", DecisionTreeClassifier(max_depth=2))).fit(given.frame(), given.labels) for _ in "12"
    )
    ours.note = ServicectlError
    theirs.note = pytest.Class

    with pytest.raises(NotServable, match="needs servicectl"):
        checked(bank_before, product(tmp_path / "ours.pkl", ours))
    with pytest.raises(NotServable, match=r"No module named 'servicectl'"):
        checked(bank_before, product(tmp_path / "ours.pkl", ours), libraries=("servicectl",))
    with pytest.raises(NotServable, match="needs _pytest, which Service B is not known to have"):
        checked(bank_before, product(tmp_path / "theirs.pkl", theirs))
    assert checked(bank_before, product(tmp_path / "theirs.pkl", theirs), libraries=("_pytest",)).libraries_needed == (
        "_pytest",
    )


def test_a_pickle_that_wants_to_run_something_is_not_opened(tmp_path: Path, bank_before: Path) -> None:
    canary = tmp_path / "opened"

    with pytest.raises(NotServable, match="names posix"):
        checked(bank_before, product(tmp_path / "m.pkl", Bomb(canary)))

    assert not canary.exists()


def test_a_built_in_function_in_a_pickle_is_refused_while_it_is_opened(tmp_path: Path, bank_before: Path) -> None:
    given = rows(bank_before)
    model = by_name(("odd", FunctionTransformer(print)), ("model", LinearRegression()))
    model.set_params(odd=FunctionTransformer(None)).fit(given.frame(), given.labels).set_params(odd__func=eval)

    with pytest.raises(NotServable, match="built-in function eval"):
        checked(bank_before, product(tmp_path / "m.pkl", model))


def test_another_digest_is_refused(tmp_path: Path, bank_before: Path, bank_champion: Trained) -> None:
    copied = tmp_path / "m.pkl"
    shutil.copy(bank_champion.model.path, copied)
    with copied.open("ab") as file:
        file.write(b"\0")

    with pytest.raises(IntegrityError):
        checked(bank_before, ProductFile(str(copied), bank_champion.model.sha256, bank_champion.model.bytes))


def test_modules_are_read_from_old_and_new_protocols() -> None:
    import pickle
    from collections import OrderedDict
    from fractions import Fraction

    for protocol in range(6):
        found = modules_needed(pickle.dumps([OrderedDict(), Fraction(1, 2), Fraction(1, 3)], protocol=protocol))
        assert {"collections", "fractions"} <= found


_CONFINED = """
import runpy, socket, os, sys
confine = runpy.run_path(sys.argv[1])
held = confine["no_files"]() + confine["no_network"]()
def tried(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
    return "done"
print(held)
print(tried(lambda: socket.socket()), tried(lambda: os.execv("/bin/true", ["true"])))
print(tried(lambda: os.write(os.open(sys.argv[2], os.O_CREAT | os.O_WRONLY), b"x")), tried(lambda: open(sys.argv[1]).read()))
"""


def test_a_confined_process_has_no_socket_no_other_program_and_writes_no_file(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-I", "-c", _CONFINED, str(confine.__file__), str(tmp_path / "x")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()

    assert found[0] == "('no_files', 'no_new_privs', 'seccomp')"
    assert found[1] == "PermissionError PermissionError"
    assert found[2] == "OSError done"


def test_the_worker_is_found_outside_the_current_folder() -> None:
    assert WORKER[0] == "-P"
