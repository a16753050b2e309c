from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from servicectl._pb import myservice_pb2, myservice_pb2_grpc
from servicectl.errors import BadAnswer, PartyUnavailable
from servicectl.estate.analytics import AnalyticsClient, FeatureMetric, ModelAnswer
from tests.parts import free_port

Answer = Callable[[myservice_pb2.DriftRequest, grpc.ServicerContext], myservice_pb2.DriftResponse]


@contextmanager
def service_c(answer: Answer) -> Iterator[str]:
    """A gRPC server whose CalculateDrift answers as told."""

    class Servicer(myservice_pb2_grpc.PythonWorkerServicer):
        def CalculateDrift(  # noqa: N802 -- the name on the wire
            self, request: myservice_pb2.DriftRequest, context: grpc.ServicerContext
        ) -> myservice_pb2.DriftResponse:
            return answer(request, context)

    server = grpc.server(ThreadPoolExecutor(2))
    myservice_pb2_grpc.add_PythonWorkerServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def metric(name: str, psi: float = 0.0, status: str = "PASS") -> myservice_pb2.FeatureDriftMetric:
    return myservice_pb2.FeatureDriftMetric(
        feature_name=name, ks_stat=0.5, ks_p_value=0.01, psi=psi, kl_divergence=0.25, status=status
    )


def answering(*results: myservice_pb2.ModelDriftResult) -> Answer:
    return lambda *_: myservice_pb2.DriftResponse(model_results=results)


def test_the_answer_is_carried_over_unjudged() -> None:
    loan = myservice_pb2.ModelDriftResult(
        model_id="Loan", drift_detected=False, feature_metrics=[metric("age", 9.5, "CRITICAL"), metric("age", -1, "?")]
    )
    unmeasured = myservice_pb2.ModelDriftResult(model_id="House", drift_detected=True)

    with service_c(answering(loan, unmeasured)) as address:
        answer = AnalyticsClient(address).ask(deadline_s=10)

    assert answer == (
        ModelAnswer(
            "Loan",
            False,
            (FeatureMetric("age", 9.5, 0.5, 0.01, 0.25, "CRITICAL"), FeatureMetric("age", -1, 0.5, 0.01, 0.25, "?")),
        ),
        ModelAnswer("House", True, ()),
    )


def test_an_empty_answer_is_empty_and_not_an_error() -> None:
    with service_c(answering()) as address:
        assert AnalyticsClient(address).ask(deadline_s=10) == ()


def test_values_that_are_not_finite_stay_as_they_are() -> None:
    odd = [metric("a", math.nan), metric("b", math.inf), metric("c", -math.inf)]
    with service_c(answering(myservice_pb2.ModelDriftResult(model_id="Loan", feature_metrics=odd))) as address:
        [answer] = AnalyticsClient(address).ask(deadline_s=10)

    assert [str(carried.psi) for carried in answer.metrics] == ["nan", "inf", "-inf"]


def test_an_answer_larger_than_grpcs_default_limit_arrives() -> None:
    many = [metric(f"{'feature' * 10}_{number}") for number in range(60_000)]
    with service_c(answering(myservice_pb2.ModelDriftResult(model_id="Loan", feature_metrics=many))) as address:
        [answer] = AnalyticsClient(address).ask(deadline_s=30)

    assert len(answer.metrics) == 60_000


def test_a_closed_port_names_service_c_and_the_cure() -> None:
    client = AnalyticsClient(f"127.0.0.1:{free_port()}")

    with pytest.raises(PartyUnavailable) as caught:
        client.ask(deadline_s=10)

    assert caught.value.party == "Service C (analytics)"
    assert "analytics.address" in caught.value.cure
    assert not client.reachable()


def test_a_passed_deadline_says_that_it_is_still_busy_and_asks_once() -> None:
    release = threading.Event()
    asked: list[str] = []

    def slow(request: myservice_pb2.DriftRequest, context: grpc.ServicerContext) -> myservice_pb2.DriftResponse:
        asked.append(request.model_id)
        release.wait(30)
        return myservice_pb2.DriftResponse()

    with service_c(slow) as address:
        with pytest.raises(PartyUnavailable, match=r"still busy.*must not be stacked") as caught:
            AnalyticsClient(address).ask(deadline_s=0.3)
        release.set()

    assert caught.value.party == "Service C (analytics)"
    assert asked == [""]


def test_a_server_that_fails_is_a_bad_answer_in_one_line() -> None:
    def failing(request: myservice_pb2.DriftRequest, context: grpc.ServicerContext) -> myservice_pb2.DriftResponse:
        context.abort(grpc.StatusCode.INTERNAL, "first line\nsecond line")

    with service_c(failing) as address, pytest.raises(BadAnswer, match="INTERNAL: first line second line"):
        AnalyticsClient(address).ask(deadline_s=10)


def test_another_grpc_service_at_the_address_is_told() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        client = AnalyticsClient(f"127.0.0.1:{port}")

        assert client.reachable()
        with pytest.raises(BadAnswer, match="does not offer this call"):
            client.ask(deadline_s=10)
    finally:
        server.stop(0).wait()
