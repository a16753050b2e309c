"""Service C in small: `python -m servicectl.miniature.analytics --redis URL --port P`.

CalculateDrift with the real one's arithmetic and its silences: whatever it cannot read or measure is left out of an
answer whose gRPC status is always OK. It reads rows through the handler, like everybody.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import redis
from scipy import stats

from servicectl._pb import myservice_pb2, myservice_pb2_grpc
from servicectl.estate.queue import READ_QUEUE
from servicectl.estate.serving_wire import PROD_MODELS, metadata_key
from servicectl.miniature import worker

BINS = 10
EMPTY_BIN = 1e-10
WINDOW_ROWS = 20_000
CRITICAL_PSI = 0.25
WARNING_PSI = 0.1
WARNING_KS = 0.1
WARNING_P = 0.05

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """Rows by event time: skip `offset`, take at most `limit` (the oldest ones of a larger window)."""

    offset: int
    limit: int


class _RunAbortedError(Exception):
    """The metadata of one model ends the whole run; what was measured before it is still answered."""


def windows(rows: int) -> tuple[Window, Window]:
    """Given a feature's number of rows, its history (50-70 %) and its current window (the newest 5 %)."""
    start, end, newest = int(rows * 0.5), int(rows * 0.7), int(rows * 0.95)
    return Window(start, min(end - start, WINDOW_ROWS)), Window(newest, min(rows - newest, WINDOW_ROWS))


def measured(feature: str, history: Values, current: Values) -> myservice_pb2.FeatureDriftMetric | None:
    """Two windows' values compared; None if one of them is empty.

    PSI = sum((q - p) ln(q / p)) and KL(current || history) over ten equal-width bins of the combined range, an empty
    bin counting as 1e-10; two-sample Kolmogorov-Smirnov.
    """
    if not len(history) or not len(current):
        return None
    p, q = _shares(history, current)
    psi = float(np.sum((q - p) * np.log(q / p)))
    divergence = float(np.sum(q * np.log(q / p)))
    ks = stats.ks_2samp(history, current)
    return myservice_pb2.FeatureDriftMetric(
        feature_name=feature,
        psi=psi,
        kl_divergence=divergence,
        ks_stat=float(ks.statistic),
        ks_p_value=float(ks.pvalue),
        status=status(psi, float(ks.statistic), float(ks.pvalue)),
    )


def status(psi: float, ks_stat: float, ks_p_value: float) -> str:
    if psi > CRITICAL_PSI:
        return "CRITICAL"
    if psi > WARNING_PSI or (ks_p_value < WARNING_P and ks_stat > WARNING_KS):
        return "WARNING"
    return "PASS"


def _shares(history: Values, current: Values) -> tuple[Values, Values]:
    together = np.concatenate([history, current])
    edges = np.linspace(together.min(), together.max(), BINS + 1)
    if edges[0] == edges[-1]:
        same = np.ones(1)
        return same, same
    shares = [np.histogram(values, edges)[0] / len(values) for values in (history, current)]
    p, q = (np.where(share > 0, share, EMPTY_BIN) for share in shares)
    return p, q


class Analytics(myservice_pb2_grpc.PythonWorkerServicer):
    """`patience_s` is how long one answer of the handler is waited for."""

    def __init__(self, redis_url: str, patience_s: float) -> None:
        self._redis = worker.connection(redis_url, patience_s + 5)
        self._patience_s = patience_s

    def CalculateDrift(  # noqa: N802 -- the name on the wire
        self,
        request: myservice_pb2.DriftRequest,  # noqa: ARG002 -- its model_id is ignored, as by the real one
        context: grpc.ServicerContext,  # noqa: ARG002 -- never a gRPC error
    ) -> myservice_pb2.DriftResponse:
        results: list[myservice_pb2.ModelDriftResult] = []
        try:
            for model_id in self._redis.smembers(PROD_MODELS):
                if result := self._model(model_id.decode()):
                    results.append(result)  # noqa: PERF401 -- what was measured before an abort is still answered
        except (redis.RedisError, _RunAbortedError, UnicodeDecodeError) as error:
            print(f"run aborted: {error}", file=sys.stderr, flush=True)
        return myservice_pb2.DriftResponse(model_results=results)

    def _model(self, model_id: str) -> myservice_pb2.ModelDriftResult | None:
        try:
            metadata = json.loads(self._redis.get(metadata_key(model_id)) or b"")
        except ValueError:
            return None
        if not isinstance(metadata, dict) or not isinstance(metadata.get("model_id"), str):
            raise _RunAbortedError(f"metadata of {model_id}")
        features = metadata.get("expected_features")
        if isinstance(features, str):
            features = json.loads(features)
        if not features:
            return None
        metrics = [metric for name in _names(features) if (metric := self._feature(name))]
        return myservice_pb2.ModelDriftResult(
            model_id=metadata["model_id"],
            drift_detected=any(metric.status == "CRITICAL" for metric in metrics),
            feature_metrics=metrics,
        )

    def _feature(self, name: str) -> myservice_pb2.FeatureDriftMetric | None:
        if "'" in name:
            return None  # the real one does not escape it and gets a parser error for its answer
        counted = self._ask(f"SELECT COUNT(*) AS rows_there FROM features_table WHERE feature_name = '{name}'")
        if not counted:
            return None
        history, current = windows(int(counted[0]["rows_there"]))
        return measured(name, self._window("features_table", name, history), self._window("features", name, current))

    def _window(self, table: str, name: str, window: Window) -> Values:
        rows = self._ask(
            f"SELECT value FROM {table} WHERE feature_name = '{name}' "
            f"ORDER BY event_timestamp LIMIT {window.limit} OFFSET {window.offset}"
        )
        return np.array([row["value"] for row in rows if row["value"] is not None], dtype=np.float64)

    def _ask(self, query: str) -> Sequence[dict[str, Any]]:
        """The handler's rows; none where it refuses, cannot represent them, or does not answer."""
        key = f"resp:analytics:{uuid.uuid4()}"
        self._redis.rpush(READ_QUEUE, json.dumps({"query": query, "response_key": key}))
        answered = self._redis.blpop([key], timeout=self._patience_s)
        if answered is None:
            return []
        self._redis.delete(key)
        try:
            return json.loads(answered[1])["data"] or []
        except ValueError:
            return []


def _names(features: Any) -> Iterator[str]:
    for feature in features:
        if isinstance(feature, dict) and isinstance(feature.get("name"), str):
            yield feature["name"]


def main() -> None:
    parser = worker.arguments("Service C's drift analytics in small")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds to wait for one answer of the handler")
    options = parser.parse_args()
    servicer = Analytics(options.redis, options.patience)
    worker.serve(
        options.port,
        lambda server: myservice_pb2_grpc.add_PythonWorkerServicer_to_server(servicer, server),  # type: ignore[no-untyped-call]  # generated
    )


if __name__ == "__main__":
    main()
