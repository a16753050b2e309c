"""Canary rows: among them are some that the champion answers otherwise, so that serving can be told apart."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline
from sklearn.tree import DecisionTreeClassifier

from servicectl.training import floor
from servicectl.training.frame import read, split
from servicectl.training.judge import judge
from servicectl.training.servable import check
from servicectl.training.spec import GateSpec, ProductFile, Servability, TrainingSpec, Verdict
from tests.training.making import bank_spec, product


@pytest.fixture
def alike(tmp_path: Path, bank_before: Path) -> tuple[ProductFile, ProductFile]:
    """Two models that answer all but a thousandth of the rows alike."""
    spec = bank_spec()
    given = split(read(bank_before, spec), spec).training
    frame = given.frame()
    column = frame[spec.features[0]]
    above = column > column.median()
    rare = column >= column.quantile(0.9995)

    def fitted(name: str, labels: object) -> ProductFile:
        columns = ColumnTransformer([("all", "passthrough", list(spec.features))])
        tree = DecisionTreeClassifier(random_state=0)
        return product(tmp_path / name, Pipeline([("columns", columns), ("model", tree)]).fit(frame, labels))

    return fitted("champion.pkl", above.astype(int)), fitted("challenger.pkl", (above ^ rare).astype(int))


def judged(snapshot: Path, challenger: ProductFile, champion: ProductFile) -> Verdict:
    return judge(
        floor.JudgeRequest(
            spec=bank_spec(),
            gate=GateSpec(mode="always"),
            snapshot=str(snapshot),
            challenger=challenger,
            champion=champion,
        )
    )


def requests(snapshot: Path, model: ProductFile, telling: tuple[int, ...] | None) -> Servability:
    spec: TrainingSpec = bank_spec()
    return check(floor.CheckRequest(spec=spec, snapshot=str(snapshot), model=model, max_mb=100, telling=telling))


def answered_otherwise(found: Servability, champion: ProductFile) -> list[bool]:
    import pandas as pd

    model = pickle.loads(Path(champion.path).read_bytes())
    answers = model.predict(pd.DataFrame([row.features for row in found.canary])[list(bank_spec().features)])
    return [answer != row.prediction for answer, row in zip(answers, found.canary, strict=True)]


def test_rows_that_the_champion_answers_otherwise_are_among_the_requests(
    bank_before: Path, alike: tuple[ProductFile, ProductFile]
) -> None:
    champion, challenger = alike
    assert not any(answered_otherwise(requests(bank_before, challenger, None), champion))
    verdict = judged(bank_before, challenger, champion)
    assert 0 < len(verdict.telling) <= 12
    found = requests(bank_before, challenger, verdict.telling)
    otherwise = answered_otherwise(found, champion)
    assert sum(otherwise) == len(verdict.telling)
    assert [row.tells for row in found.canary] == otherwise
    assert len(found.canary) <= 24


def test_a_model_that_answers_as_the_champion_does_is_said_to_be_no_other(
    bank_before: Path, alike: tuple[ProductFile, ProductFile]
) -> None:
    champion, _ = alike
    assert judged(bank_before, champion, champion).telling == ()
    assert {row.tells for row in requests(bank_before, champion, ()).canary} == {False}
