"""A Service B that answers wrongly for chosen names: it asks the real worker and adds one, or asks it for another model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from servicectl._pb import myservice_pb2, myservice_pb2_grpc


class _Wrong(myservice_pb2_grpc.PythonWorkerServicer):
    def __init__(
        self, behind: myservice_pb2_grpc.PythonWorkerStub, is_wrong: Callable[[str], bool], instead: Mapping[str, str]
    ) -> None:
        self._behind = behind
        self._is_wrong = is_wrong
        self._instead = instead

    def RunInference(  # noqa: N802 -- the name on the wire
        self,
        request: myservice_pb2.InferenceRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 -- what is wrong is the number, never the status
    ) -> myservice_pb2.InferenceResponse:
        asked = request.model_name
        request.model_name = self._instead.get(asked, asked)
        answer: myservice_pb2.InferenceResponse = self._behind.RunInference(request)
        if self._is_wrong(asked) and not answer.error_message:
            answer.prediction += 1
        return answer


@contextmanager
def wrong_serving(
    address: str, is_wrong: Callable[[str], bool] = lambda _: False, instead: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Given the real worker's address and which model names get a wrong number, the address to ask instead.

    `instead`: which model the worker is asked for in place of the one in the request.
    """
    server = grpc.server(ThreadPoolExecutor(4))
    with grpc.insecure_channel(address) as channel:
        behind = myservice_pb2_grpc.PythonWorkerStub(channel)  # type: ignore[no-untyped-call]  # generated
        myservice_pb2_grpc.add_PythonWorkerServicer_to_server(_Wrong(behind, is_wrong, instead or {}), server)  # type: ignore[no-untyped-call]  # generated
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()
