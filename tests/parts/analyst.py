"""A Service C that answers what a test says: a real gRPC server in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from servicectl._pb import myservice_pb2, myservice_pb2_grpc

Answer = list[myservice_pb2.ModelDriftResult]


@dataclass
class Analyst:
    address: str = ""
    deadlines: list[float] = field(default_factory=list)  # seconds that each call was willing to wait
    free: threading.Event = field(default_factory=threading.Event)  # cleared: calls are kept waiting


def metric(feature: str, psi: float, status: str, ks: float = 0.0) -> myservice_pb2.FeatureDriftMetric:
    return myservice_pb2.FeatureDriftMetric(
        feature_name=feature, ks_stat=ks, ks_p_value=1.0, psi=psi, kl_divergence=psi, status=status
    )


def model(model_id: str, *metrics: myservice_pb2.FeatureDriftMetric) -> myservice_pb2.ModelDriftResult:
    return myservice_pb2.ModelDriftResult(
        model_id=model_id, drift_detected=any(one.status == "CRITICAL" for one in metrics), feature_metrics=metrics
    )


@contextmanager
def analyst(answer: Callable[[], Answer]) -> Iterator[Analyst]:
    told = Analyst()
    told.free.set()

    class Servicer(myservice_pb2_grpc.PythonWorkerServicer):
        def CalculateDrift(  # noqa: N802 -- the name on the wire
            self,
            request: myservice_pb2.DriftRequest,  # noqa: ARG002 -- its model_id is ignored, as by the real one
            context: grpc.ServicerContext,
        ) -> myservice_pb2.DriftResponse:
            told.deadlines.append(context.time_remaining())
            told.free.wait(30)
            return myservice_pb2.DriftResponse(model_results=answer())

    server = grpc.server(ThreadPoolExecutor(4))
    myservice_pb2_grpc.add_PythonWorkerServicer_to_server(Servicer(), server)  # type: ignore[no-untyped-call]  # generated
    told.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield told
    finally:
        told.free.set()
        server.stop(grace=None).wait()
