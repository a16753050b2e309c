from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal

import grpc
import numpy as np
import pytest

from servicectl._pb import myservice_pb2, myservice_pb2_grpc
from servicectl.errors import BadAnswer, PartyUnavailable
from servicectl.estate.serving import PredictionFailed, ServingClient, as_text
from tests.parts import free_port

Answer = Callable[[myservice_pb2.InferenceRequest], myservice_pb2.InferenceResponse]


@contextmanager
def service_b(answer: Answer) -> Iterator[str]:
    """A gRPC server whose RunInference answers as told."""

    class Servicer(myservice_pb2_grpc.PythonWorkerServicer):
        def RunInference(  # noqa: N802 -- the name on the wire
            self, request: myservice_pb2.InferenceRequest, _: grpc.ServicerContext
        ) -> myservice_pb2.InferenceResponse:
            return answer(request)

    server = grpc.server(ThreadPoolExecutor(2))
    myservice_pb2_grpc.add_PythonWorkerServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def test_a_prediction_sends_the_name_and_every_value_as_text() -> None:
    asked: list[tuple[str, dict[str, str]]] = []

    def answer(request: myservice_pb2.InferenceRequest) -> myservice_pb2.InferenceResponse:
        asked.append((request.model_name, dict(request.features)))
        return myservice_pb2.InferenceResponse(prediction=0.1 + 0.2)

    with service_b(answer) as address, ServingClient(address, timeout_s=10) as client:
        prediction = client.predict(
            "Loan", {"age": 41.0, "job": "clerk", "rate": np.float64(1e6), "calls": np.int64(3)}
        )

    assert prediction == 0.1 + 0.2
    assert asked == [("Loan", {"age": "41", "job": "clerk", "rate": "1e+06", "calls": "3"})]


def test_minus_one_without_a_message_is_a_prediction() -> None:
    with (
        service_b(lambda _: myservice_pb2.InferenceResponse(prediction=-1.0)) as address,
        ServingClient(address, timeout_s=10) as client,
    ):
        assert client.predict("Loan", {}) == -1.0


def test_an_error_message_is_a_failure_whatever_the_number_says() -> None:
    refusal = myservice_pb2.InferenceResponse(prediction=0.7, error_message="Model Loan\nnot found in Redis")
    with (
        service_b(lambda _: refusal) as address,
        ServingClient(address, timeout_s=10) as client,
        pytest.raises(PredictionFailed, match="'Loan': Model Loan not found in Redis"),
    ):
        client.predict("Loan", {"age": 1})


def test_a_closed_port_names_service_b_and_the_cure() -> None:
    with ServingClient(f"127.0.0.1:{free_port()}", timeout_s=10) as client:
        assert not client.reachable()
        with pytest.raises(PartyUnavailable) as caught:
            client.predict("Loan", {})

    assert caught.value.party == "Service B (serving)"
    assert "serving.address" in caught.value.cure


def test_a_silent_worker_is_unavailable_after_the_time_given() -> None:
    release = threading.Event()

    def slow(request: myservice_pb2.InferenceRequest) -> myservice_pb2.InferenceResponse:
        release.wait(30)
        return myservice_pb2.InferenceResponse()

    with service_b(slow) as address, ServingClient(address, timeout_s=0.3) as client:
        assert client.reachable()
        with pytest.raises(PartyUnavailable, match=r"within 0\.3 s"):
            client.predict("Loan", {})
        release.set()


def test_a_worker_without_run_inference_is_a_bad_answer() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with ServingClient(f"127.0.0.1:{port}", timeout_s=10) as client, pytest.raises(BadAnswer):
            client.predict("Loan", {})
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (True, "1"),
        (False, "0"),
        (3.0, "3"),
        (-3.5, "-3.5"),
        (0.1, "0.1"),
        (100000.0, "100000"),
        (123456.789, "123456.789"),
        (1e6, "1e+06"),
        (1234567.0, "1.234567e+06"),
        (1e21, "1e+21"),
        (1.5e300, "1.5e+300"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (0.000012, "1.2e-05"),
        (-0.0, "-0"),
        (math.nan, "NaN"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (None, "NaN"),
        (np.float64(2.5), "2.5"),
        (np.int32(7), "7"),
        (Decimal("1.25"), "1.25"),
        (2**70, "1180591620717411303424"),
        ("1,5", "1,5"),
        ("", ""),
    ],
)
def test_values_take_the_text_form_of_the_gateway(value: object, text: str) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize("value", [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, 123456789.125, -9.87654321e-7])
def test_the_text_of_a_float_names_exactly_that_float(value: float) -> None:
    assert float(as_text(value)) == value
