"""The PyTorch example of docs/: importable, of the protocol's shape and right in its arithmetic, without torch."""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.neural_network import MLPClassifier

from servicectl.training.trainer import Trainer
from tests.parts import ROOT


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(ROOT / "docs/examples"))
        yield importlib.import_module("torch_trainer")
    del sys.modules["torch_trainer"]


@pytest.mark.parametrize("name", ["TorchTrainer", "StockTorchTrainer"])
def test_the_example_has_the_methods_of_the_protocol(example: Any, name: str) -> None:
    trainer = getattr(example, name)()
    for method in ("prepare", "fit", "package"):
        wanted = list(inspect.signature(getattr(Trainer, method)).parameters)[1:]
        assert list(inspect.signature(getattr(trainer, method)).parameters) == wanted
    assert all(isinstance(module, str) for module in trainer.needs)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_stock_twin_answers_what_the_network_would(example: Any, classes: int) -> None:
    chance = np.random.default_rng(1)
    weights = [
        (chance.normal(size=shape).astype(np.float32), chance.normal(size=shape[0]).astype(np.float32))
        for shape in ((5, 4), (classes, 5))
    ]
    x = chance.normal(size=(50, 4)).astype(np.float32)
    hidden = np.maximum(x @ weights[0][0].T + weights[0][1], 0)
    logits = hidden @ weights[1][0].T + weights[1][1]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    model: MLPClassifier = pickle.loads(pickle.dumps(example.as_stock(weights, np.arange(classes) + 7)))

    np.testing.assert_allclose(model.predict_proba(x), shares, atol=1e-5)
    assert model.predict(x).tolist() == (7 + shares.argmax(axis=1)).tolist()


def test_the_page_about_trainers_names_what_the_example_has(example: Any) -> None:
    page = (ROOT / "docs/trainers.md").read_text()
    for line in page.splitlines():
        if ' = "torch_trainer:' in line:
            assert hasattr(example, line.partition(":")[2].strip('"'))
    assert page.count("torch_trainer:") == 2
    assert Path(example.__file__).name in page
