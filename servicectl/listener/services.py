"""The estate's JobScheduler and our own Jobs: each call is a question to the desk, asked in a thread."""
# ruff: noqa: N802 -- methods have the names on the wire

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc

from servicectl import log
from servicectl._pb import myservice_pb2, myservice_pb2_grpc
from servicectl._pb.v1 import jobs_pb2, jobs_pb2_grpc
from servicectl.actions.trigger import Desk, InTheWay, Seen, UnknownJob
from servicectl.errors import ConfigError, ServicectlError, StoreError, TryAgain, UsageError
from servicectl.jobs.model import ENDED, Event, State
from servicectl.listener.messages import event_message, job_message

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_TEXT_LIMIT = 900  # a status text travels in HTTP/2 headers, which have a limit of 8 KiB, as percent-encoded UTF-8
_LOOK_S = 0.25  # how often a watched job's store is looked at, which is two calls of stat(2)
_READ_ANYWAY = 40  # every so many looks, for a file system whose times are too coarse to tell two writes apart

_T = TypeVar("_T")


class Asking:
    """Runs the desk's methods in `threads` and turns their errors into statuses."""

    def __init__(self, desk: Desk, threads: Executor) -> None:
        self.desk = desk
        self._threads = threads

    async def answer(self, context: Context, ask: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        except ServicectlError as error:
            await refuse(context, status_of(error), str(error))
        except Exception as error:  # noqa: BLE001 -- the server outlives a defect; its text stays in our own log
            log.error(f"a call of {context.peer()} failed: {type(error).__name__}: {error}")
            await refuse(context, grpc.StatusCode.INTERNAL, f"{type(error).__name__}: see the listener's log")

    async def trigger(
        self, context: Context, job_name: str, params: dict[str, str], request_id: str
    ) -> tuple[Seen, bool]:
        seen, created = await self.answer(context, partial(self.desk.trigger, job_name, params, request_id))
        if created:
            log.notice(f"job {seen.job.short_id} ({seen.job.scope}) for {_caller(context)}")
        return seen, created


def status_of(error: ServicectlError) -> grpc.StatusCode:
    match error:
        case UnknownJob():
            return grpc.StatusCode.NOT_FOUND
        case UsageError():
            return grpc.StatusCode.INVALID_ARGUMENT
        case InTheWay() | ConfigError():
            return grpc.StatusCode.FAILED_PRECONDITION
        case TryAgain() | StoreError():
            return grpc.StatusCode.UNAVAILABLE
        case _:
            return grpc.StatusCode.INTERNAL


async def refuse(context: Context, status: grpc.StatusCode, text: str) -> NoReturn:
    await context.abort(status, " ".join(text.split())[:_TEXT_LIMIT])
    raise AssertionError("abort raises")


class Scheduler(myservice_pb2_grpc.JobSchedulerServicer):
    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def TriggerJob(
        self, request: myservice_pb2.TriggerJobRequest, context: Context
    ) -> myservice_pb2.TriggerJobResponse:
        seen, _ = await self._asking.trigger(context, request.job_name, {}, "")
        return myservice_pb2.TriggerJobResponse(success=True, job_id=seen.job.job_id)


class Jobs(jobs_pb2_grpc.JobsServicer):
    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._desk = asking.desk

    async def TriggerJob(self, request: jobs_pb2.TriggerJobRequest, context: Context) -> jobs_pb2.TriggerJobResponse:
        return await self._trigger(context, request.job_name, dict(request.params), request.request_id)

    async def CheckDrift(self, request: jobs_pb2.CheckDriftRequest, context: Context) -> jobs_pb2.TriggerJobResponse:
        return await self._trigger(context, "drift-check", {}, request.request_id)

    async def Retrain(self, request: jobs_pb2.RetrainRequest, context: Context) -> jobs_pb2.TriggerJobResponse:
        params = {"window": request.window} if request.window else {}
        if request.HasField("publish"):
            params["publish"] = "true" if request.publish else "false"
        return await self._trigger(context, f"retrain:{request.model_id}", params, request.request_id)

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Context) -> jobs_pb2.Job:
        seen = await self._asking.answer(context, partial(self._desk.get, request.job_id))
        return job_message(seen, whole=True)

    async def ListJobs(self, request: jobs_pb2.ListJobsRequest, context: Context) -> jobs_pb2.ListJobsResponse:
        ask = partial(
            self._desk.newest,
            limit=request.limit or 50,
            unfinished_only=request.unfinished_only,
            kind=request.kind or None,
        )
        found: list[Seen] = await self._asking.answer(context, ask)
        return jobs_pb2.ListJobsResponse(jobs=[job_message(seen) for seen in found])

    async def WatchJob(self, request: jobs_pb2.WatchJobRequest, context: Context) -> AsyncIterator[jobs_pb2.JobEvent]:
        seen = request.after
        while True:
            before = self._desk.store_state()
            events: list[Event] = await self._asking.answer(context, partial(self._desk.events, request.job_id))
            for event in events:
                if event.seq > seen:
                    yield event_message(event)
                    seen = event.seq
            if State(events[-1].to_state) in ENDED:
                return
            for _ in range(_READ_ANYWAY):
                await asyncio.sleep(_LOOK_S)
                if self._desk.store_state() != before:
                    break

    async def _trigger(
        self, context: Context, job_name: str, params: dict[str, str], request_id: str
    ) -> jobs_pb2.TriggerJobResponse:
        seen, created = await self._asking.trigger(context, job_name, params, request_id)
        return jobs_pb2.TriggerJobResponse(job=job_message(seen), created=created)


def _caller(context: Context) -> str:
    """Where a call came from, and by whose certificate."""
    names = [name.decode(errors="replace") for name in context.auth_context().get("x509_common_name", ())]
    return " ".join([context.peer(), *names])
