"""Service B's worker in small: `python -m servicectl.miniature.serving --redis URL --port P`.

RunInference as the real one does it: values parsed from text, a one-row frame in arbitrary column order, `predict`,
and every error an OK answer of -1.0 with an error_message. Beyond the real one it keeps one loaded model per id,
obeys `model_events`, and unpickles nothing whose digest is not on record.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import pandas as pd
import redis
import sklearn.compose
import sklearn.ensemble
import sklearn.impute
import sklearn.linear_model
import sklearn.pipeline
import sklearn.preprocessing  # noqa: F401 -- loaded before `ready`, or the first request waits seconds for them

from servicectl._pb import myservice_pb2, myservice_pb2_grpc
from servicectl.estate.serving_wire import EVENT_FIELD, EVENTS, artifact_key, candidate_sha256, metadata_key
from servicectl.miniature import worker

_BLOCK_MS = 1000
_RECONNECT_S = 0.2


class RefusedError(Exception):
    """A model that is not there, or whose bytes are not the ones on record."""


@dataclass(frozen=True)
class Loaded:
    sha256: str
    model: Any


def parsed(text: str) -> str | int | float:
    """One value as Service B reads it: a dot makes it a float, else an integer, else a float, else it stays text."""
    for kind in (float,) if "." in text else (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def frame(features: Mapping[str, str]) -> pd.DataFrame:
    """One row, its columns in an order that differs from call to call."""
    names = list(features)
    random.shuffle(names)
    return pd.DataFrame([{name: parsed(features[name]) for name in names}], columns=names)


class Serving(myservice_pb2_grpc.PythonWorkerServicer):
    def __init__(self, redis_url: str) -> None:
        self._redis = worker.connection(redis_url, 30)
        self._models: dict[str, Loaded] = {}
        self._lock = threading.Lock()
        self._seen = "0-0"

    def RunInference(  # noqa: N802 -- the name on the wire
        self,
        request: myservice_pb2.InferenceRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 -- never a gRPC error
    ) -> myservice_pb2.InferenceResponse:
        try:
            model = self._model(request.model_name)
            result = model.predict(frame(request.features))
            return myservice_pb2.InferenceResponse(prediction=float(result[0]))
        except Exception as error:  # noqa: BLE001 -- a foreign model may raise anything; the contract is a message
            return myservice_pb2.InferenceResponse(prediction=-1.0, error_message=str(error) or type(error).__name__)

    def obey(self) -> None:
        """Follow the events for ever, so that a replaced model leaves memory without a request."""
        while True:
            try:
                self._redis.xread({EVENTS: self._seen}, count=1, block=_BLOCK_MS)
                with self._lock:
                    changed = self._catch_up()
                    for name in changed:
                        self._load_again(name)
            except redis.RedisError as error:
                _tell(event="redis", error=str(error))
                threading.Event().wait(_RECONNECT_S)

    def start(self) -> None:
        """Take the stream's end as read; every model is loaded from its keys after this."""
        newest = self._redis.xrevrange(EVENTS, count=1)
        if newest:
            self._seen = newest[0][0].decode()
        threading.Thread(target=self.obey, daemon=True).start()

    def _model(self, name: str) -> Any:
        if candidate_sha256(name):
            return self._loaded(name).model  # judged once or twice, then gone: never kept
        with self._lock:
            # What was published before this request is obeyed before it is answered.
            self._catch_up()
            if name not in self._models:
                self._models[name] = self._loaded(name)
            return self._models[name].model

    def _catch_up(self) -> list[str]:
        changed: list[str] = []
        while batch := self._redis.xread({EVENTS: self._seen}, count=100):
            for entry, fields in batch[0][1]:
                self._seen = entry.decode()
                name = json.loads(fields[EVENT_FIELD.encode()])["model"]
                dropped = self._models.pop(name, None)
                if dropped is not None:
                    _tell(event="dropped", model=name, sha256=dropped.sha256)
                changed.append(name)
        return list(dict.fromkeys(changed))

    def _load_again(self, name: str) -> None:
        try:
            self._models[name] = self._loaded(name)
        except Exception as error:  # noqa: BLE001 -- unpickling may raise anything; the next request tells it again
            _tell(event="refused", model=name, error=str(error))

    def _loaded(self, name: str) -> Loaded:
        expected = candidate_sha256(name)
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.get(metadata_key(name))
            pipe.get(artifact_key(name, "pkl"))
            metadata, content = pipe.execute()
        if content is None:
            raise RefusedError(f"Model {name} not found in Redis")
        expected = expected or json.loads(metadata or b"{}").get("sha256")
        digest = hashlib.sha256(content).hexdigest()
        if digest != expected:
            raise RefusedError(f"Model {name} has sha256 {digest}, on record is {expected}")
        try:
            model = pickle.loads(content)  # noqa: S301 -- the bytes are the ones servicectl put on record
        except Exception as error:
            raise RefusedError(f"Failed to unpickle model: {error}") from error
        _tell(event="loaded", model=name, sha256=digest)
        return Loaded(digest, model)


def _tell(**what: str) -> None:
    print(json.dumps(what), file=sys.stderr, flush=True)


def main() -> None:
    options = worker.arguments("Service B's worker in small").parse_args()
    servicer = Serving(options.redis)
    servicer.start()
    worker.serve(
        options.port,
        lambda server: myservice_pb2_grpc.add_PythonWorkerServicer_to_server(servicer, server),  # type: ignore[no-untyped-call]  # generated
    )


if __name__ == "__main__":
    main()
