"""The first step of every published model: a stock ColumnTransformer that selects its columns by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from servicectl.training.spec import TrainingSpec

MISSING = "missing"


def transformer(spec: TrainingSpec, kinds: Mapping[str, str]) -> Any:
    """An unfitted ColumnTransformer. `kinds`: how each feature is learnt (numeric, coded or text)."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    def encoder() -> OneHotEncoder:
        # Dense: many estimators refuse sparse input; the number of categories is bounded when rows are described.
        return OneHotEncoder(handle_unknown="ignore", sparse_output=False)

    # In the order of `features` for numbers, of `categorical` for the others.
    numeric = [name for name in spec.features if kinds[name] == "numeric"]
    coded = [name for name in spec.categorical if kinds[name] == "coded"]
    text = [name for name in spec.categorical if kinds[name] == "text"]
    # keep_empty_features: a column without any value among the training rows must not change the matrix's shape.
    branches = [
        (
            "numeric",
            Pipeline(
                [("impute", SimpleImputer(strategy="median", keep_empty_features=True)), ("scale", StandardScaler())]
            ),
            numeric,
        ),
        (
            "coded",
            Pipeline(
                [("impute", SimpleImputer(strategy="most_frequent", keep_empty_features=True)), ("encode", encoder())]
            ),
            coded,
        ),
        (
            "text",
            Pipeline(
                [
                    ("impute", SimpleImputer(strategy="constant", fill_value=MISSING, keep_empty_features=True)),
                    ("encode", encoder()),
                ]
            ),
            text,
        ),
    ]
    return ColumnTransformer([branch for branch in branches if branch[2]])
