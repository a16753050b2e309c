"""Service B's worker, over `myservice.PythonWorker/RunInference`: what a canary asks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from numbers import Integral, Real
from types import TracebackType
from typing import Self

import grpc

from servicectl._pb import myservice_pb2, myservice_pb2_grpc
from servicectl.errors import ServicectlError
from servicectl.estate import rpc

PARTY = "Service B (serving)"


class PredictionFailed(ServicectlError):
    """Service B answered with an error_message; the number beside it (-1.0) means nothing."""


class ServingClient:
    """One channel to Service B; use as a context manager, or close()."""

    def __init__(self, address: str, timeout_s: float) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self._channel = rpc.open_channel(address)
        self._stub = myservice_pb2_grpc.PythonWorkerStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def predict(self, model_name: str, features: Mapping[str, object]) -> float:
        """Given a model id (or a candidate's name) and one row by feature name, return Service B's prediction.

        Raises PredictionFailed with Service B's own words, PartyUnavailable when it does not answer in time, and
        BadAnswer when something else answers.
        """
        request = myservice_pb2.InferenceRequest(
            model_name=model_name, features={name: as_text(value) for name, value in features.items()}
        )
        try:
            response = self._stub.RunInference(request, timeout=self.timeout_s)
        except grpc.RpcError as error:
            raise rpc.explained(
                error,
                PARTY,
                self.address,
                late=f"no answer from {self.address} within {self.timeout_s:g} s",
                cure="start Service B's worker, or correct serving.address and serving.timeout_s",
            ) from error
        if response.error_message:
            told = " ".join(response.error_message.split())[:500]
            raise PredictionFailed(f"Service B cannot predict with {model_name!r}: {told}", cure="servicectl doctor")
        return float(response.prediction)

    def reachable(self, timeout_s: float = 5.0) -> bool:
        """True if a gRPC server accepts connections at the address; asks it nothing."""
        return rpc.answers(self.address, timeout_s)


def as_text(value: object) -> str:
    """A value in the text form in which the gateway sends it.

    Numbers take the form of Go's `%v`, so that 3.0 arrives as the integer 3 and 1000000.0 as 1e+06. A missing value
    (None, NaN) is sent as `NaN`, which Service B parses to NaN. Booleans become 0 and 1: the text `true` would
    reach the model as text.
    """
    if value is None:
        return "NaN"
    if isinstance(value, str):
        return value
    if isinstance(value, Integral):  # bool is one
        return str(int(value))
    if isinstance(value, Real | Decimal):
        return _go_float(float(value))
    return str(value)


def _go_float(number: float) -> str:
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else ("+Inf" if number > 0 else "-Inf")
    if number == 0:
        return "-0" if math.copysign(1, number) < 0 else "0"
    sign, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits))
    point = len(text) + exponent  # where the decimal point stands among the digits
    minus = "-" if sign else ""
    # strconv.FormatFloat(x, 'g', -1, 64) takes the exponent form outside 1e-4 <= |x| < 1e6; Python's repr waits until 1e16.
    if -4 <= point - 1 < 6:
        return minus + _plain(text, point)
    mantissa = text[0] + ("." + text[1:] if len(text) > 1 else "")
    return f"{minus}{mantissa}e{point - 1:+03d}"


def _plain(digits: str, point: int) -> str:
    if point <= 0:
        return "0." + "0" * -point + digits
    if point >= len(digits):
        return digits + "0" * (point - len(digits))
    return f"{digits[:point]}.{digits[point:]}"
