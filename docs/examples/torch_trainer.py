"""A trainer of servicectl in PyTorch: a small network that tells classes apart. docs/trainers.md explains it.

Two ways to package it: as it is, which only a Service B with torch and this module can serve; and as scikit-learn's own
MLPClassifier with the same weights, which every Service B can.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import LabelBinarizer

from servicectl.training.trainer import Block, Schema, TrainingSpec

Array = NDArray[np.float32]
Weights = list[tuple[Array, Array]]  # of each layer: (outputs, inputs) and (outputs,)


@dataclass
class State:
    """Written down and read again between two calls of `fit`; network and optimizer share their tensors."""

    network: Any
    optimizer: Any
    classes: NDArray[np.int64]


def network_of(width: int, hidden: int, classes: int) -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def weights_of(network: Any) -> Weights:
    """Plain arrays: a pickled tensor is a pickle within the pickle, which no allow-list could look into."""
    layers = (network[0], network[2])
    return [(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()) for layer in layers]


class Network(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn ships no types
    """What is published; it asks torch for each answer."""

    def __init__(self, weights: Weights | None = None, classes: NDArray[np.int64] | None = None) -> None:
        self.weights = weights
        self.classes = classes

    @property
    def classes_(self) -> NDArray[np.int64] | None:
        return self.classes

    def fit(self, x: Array, y: NDArray[Any]) -> Network:
        raise NotImplementedError("TorchTrainer fits it")

    def predict_proba(self, x: Array) -> Array:
        import torch

        assert self.weights is not None
        (first, _), (last, _) = self.weights
        network = network_of(first.shape[1], first.shape[0], last.shape[0])
        with torch.no_grad():
            for layer, (weight, bias) in zip((network[0], network[2]), self.weights, strict=True):
                layer.weight.copy_(torch.from_numpy(weight))
                layer.bias.copy_(torch.from_numpy(bias))
            answers: Array = network(torch.from_numpy(np.asarray(x, dtype=np.float32))).softmax(dim=1).numpy()
        return answers

    def predict(self, x: Array) -> NDArray[np.int64]:
        assert self.classes is not None
        answers: NDArray[np.int64] = self.classes[self.predict_proba(x).argmax(axis=1)]
        return answers


class TorchTrainer:
    needs: tuple[str, ...] = ("torch", "torch_trainer")  # of Service B

    def prepare(self, spec: TrainingSpec, schema: Schema) -> State:
        import torch

        if not schema.codes:
            raise ValueError("this trainer tells classes apart; give a regression another one")
        torch.manual_seed(spec.seed)
        torch.set_num_threads(spec.threads)
        network = network_of(len(schema.columns), int(spec.params.get("hidden", 16)), len(schema.codes))
        optimizer = torch.optim.Adam(network.parameters(), lr=float(spec.params.get("rate", 0.001)))
        return State(network, optimizer, schema.classes)

    def fit(self, state: State, blocks: Iterable[Block]) -> State:
        import torch

        loss_of = torch.nn.CrossEntropyLoss()
        for block in blocks:
            x = torch.from_numpy(block.x)
            y = torch.from_numpy(np.searchsorted(state.classes, block.y))
            for some in torch.arange(len(x)).split(256):
                state.optimizer.zero_grad()
                loss_of(state.network(x[some]), y[some]).backward()
                state.optimizer.step()
        return state

    def package(self, state: State) -> object:
        return Network(weights_of(state.network), state.classes)


class StockTorchTrainer(TorchTrainer):
    """The same network, published as scikit-learn's."""

    needs = ()  # nothing but scikit-learn

    def package(self, state: State) -> object:
        return as_stock(weights_of(state.network), state.classes)


def as_stock(weights: Weights, classes: NDArray[np.int64]) -> MLPClassifier:
    """An MLPClassifier with the weights of a network of one hidden layer and ReLU."""
    (first, first_bias), (last, last_bias) = weights
    if len(classes) == 2:  # scikit-learn has one output then: the second class's lead over the first
        last, last_bias = last[1:] - last[:1], last_bias[1:] - last_bias[:1]
    model = MLPClassifier(hidden_layer_sizes=(len(first),), activation="relu")
    model.coefs_, model.intercepts_ = [first.T, last.T], [first_bias, last_bias]
    model.n_layers_, model.n_outputs_ = 3, len(last)
    model.out_activation_ = "logistic" if len(classes) == 2 else "softmax"
    model.classes_, model.n_features_in_ = classes, first.shape[1]
    model._label_binarizer = LabelBinarizer().fit(classes)  # noqa: SLF001 -- predict() asks it
    return model
