"""What stands before every call: the token, the rate, the number of streams."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import grpc

from servicectl.clock import Clock

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Behaviour = Callable[[Any, Context], Any]
    Handler = grpc.RpcMethodHandler[Any, Any]


HEALTH = "/grpc.health.v1.Health/"


class TokenBucket:
    """`rate` per second on average, `burst` at once; see Turner, "New directions in communications", 1986."""

    def __init__(self, rate: float, burst: float, clock: Clock) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._level = burst
        self._at = clock.monotonic()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Whether one more may pass now."""
        with self._lock:
            now = self._clock.monotonic()
            self._level = min(self._burst, self._level + (now - self._at) * self._rate)
            self._at = now
            if self._level < 1:
                return False
            self._level -= 1
            return True


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Lets calls through to their service, or refuses them. `end_streams` ends the long ones for a drain."""

    def __init__(self, *, token: str | None, bucket: TokenBucket, max_streams: int) -> None:
        self._token = None if token is None else f"Bearer {token}".encode()
        self._bucket = bucket
        self._max_streams = max_streams
        self._streams: set[asyncio.Timeout] = set()
        self._ending = False

    def end_streams(self) -> None:
        self._ending = True
        for stream in self._streams:
            stream.reschedule(asyncio.get_running_loop().time())

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = cast("Any", await continuation(details))
        if handler is None:
            return cast("Handler", handler)  # no such method; gRPC answers UNIMPLEMENTED
        codecs = (handler.request_deserializer, handler.response_serializer)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._guarded(details, handler.unary_unary), *codecs)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._guarded_stream(details, handler.unary_stream), *codecs)
        return grpc.stream_stream_rpc_method_handler(self._guarded_stream(details, handler.stream_stream), *codecs)

    def _guarded(self, details: grpc.HandlerCallDetails, behaviour: Behaviour) -> Behaviour:
        async def call(request: Any, context: Context) -> Any:
            await self._admit(details, context)
            return await behaviour(request, context)

        return call

    def _guarded_stream(self, details: grpc.HandlerCallDetails, behaviour: Behaviour) -> Behaviour:
        async def call(request: Any, context: Context) -> None:
            await self._admit(details, context)
            if len(self._streams) >= self._max_streams:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._max_streams} streams are open already")
            with self._counted() as stream, contextlib.suppress(TimeoutError):
                async with stream:
                    answers = behaviour(request, context)
                    if not inspect.isasyncgen(answers):
                        await answers
                        return
                    async for answer in answers:
                        await context.write(answer)
                    return
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the listener is ending; ask again in a moment")

        return call

    @contextlib.contextmanager
    def _counted(self) -> Iterator[asyncio.Timeout]:
        stream = asyncio.timeout(0 if self._ending else None)
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)

    async def _admit(self, details: grpc.HandlerCallDetails, context: Context) -> None:
        if self._token is not None and not self._knows_token(details):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "metadata lacks `authorization: Bearer TOKEN`")
        # A flood of triggers must not make the listener look dead to what watches over it.
        if not str(details.method).startswith(HEALTH) and not self._bucket.take():
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls; slow down")

    def _knows_token(self, details: grpc.HandlerCallDetails) -> bool:
        assert self._token is not None
        told = [value for key, value in details.invocation_metadata or () if key == "authorization"]
        as_bytes = [value if isinstance(value, bytes) else value.encode() for value in told]
        return len(as_bytes) == 1 and hmac.compare_digest(as_bytes[0], self._token)
