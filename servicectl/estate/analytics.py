"""Service C, the drift analytics, over `myservice.PythonWorker/CalculateDrift`.

Its answer is carried over unjudged. Service C answers OK with an empty or shorter answer whenever it could not
measure, so nothing that is missing here may be read as "no drift".
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from servicectl._pb import myservice_pb2, myservice_pb2_grpc
from servicectl.estate import rpc

PARTY = "Service C (analytics)"


@dataclass(frozen=True)
class FeatureMetric:
    """One feature's figures as Service C sent them; any of them may be NaN or infinite.

    psi, kl_divergence: over ten equal-width bins, natural logarithm. ks_stat: 0..1. status: PASS, WARNING or
    CRITICAL in Service C's own judgement.
    """

    feature: str
    psi: float
    ks_stat: float
    ks_p_value: float
    kl_divergence: float
    status: str


@dataclass(frozen=True)
class ModelAnswer:
    """One model's part of the answer. No metrics: nothing was measured, whatever `drift_detected` says."""

    model_id: str
    drift_detected: bool
    metrics: tuple[FeatureMetric, ...]


class AnalyticsClient:
    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, deadline_s: float) -> tuple[ModelAnswer, ...]:
        """Have the drift of all production models calculated, waiting at most `deadline_s` seconds.

        The order is Service C's (arbitrary); an empty tuple means "not measured". Raises PartyUnavailable, and
        BadAnswer when something else than Service C answers.
        """
        with rpc.open_channel(self.address) as channel:
            stub = myservice_pb2_grpc.PythonWorkerStub(channel)  # type: ignore[no-untyped-call]  # generated code
            try:
                response = stub.CalculateDrift(myservice_pb2.DriftRequest(), timeout=deadline_s)
            except grpc.RpcError as error:
                raise rpc.explained(
                    error,
                    PARTY,
                    self.address,
                    late=f"no answer from {self.address} within {deadline_s:g} s; it is still busy with this question, "
                    "and calls must not be stacked",
                    cure="let it finish before asking again, check the handler, or raise "
                    "analytics.deadline_per_feature_s"
                    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                    else "start Service C, or correct analytics.address",
                ) from error
        return tuple(_model(result) for result in response.model_results)

    def reachable(self, timeout_s: float = 5.0) -> bool:
        """True if a gRPC server accepts connections at the address; asks it nothing."""
        return rpc.answers(self.address, timeout_s)


def _model(result: myservice_pb2.ModelDriftResult) -> ModelAnswer:
    metrics = tuple(
        FeatureMetric(
            feature=metric.feature_name,
            psi=metric.psi,
            ks_stat=metric.ks_stat,
            ks_p_value=metric.ks_p_value,
            kl_divergence=metric.kl_divergence,
            status=metric.status,
        )
        for metric in result.feature_metrics
    )
    return ModelAnswer(model_id=result.model_id, drift_detected=result.drift_detected, metrics=metrics)
