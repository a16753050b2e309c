from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from servicectl._pb import myservice_pb2, myservice_pb2_grpc
from tests.parts.commands import Running
from tests.parts.estate import MODELS, Site, deadline

NO_ROWS = """
[models.Void]
label = "nothing"
features = ["tenure"]
"""


@contextmanager
def listening(site: Site) -> Iterator[tuple[Running, myservice_pb2_grpc.JobSchedulerStub]]:
    running = site.start("listen", "--address", "127.0.0.1:0")
    check = deadline()
    while not running.stdout.endswith("\n"):
        check("the listener")
    address = running.stdout.strip().removeprefix("listening on ")
    with grpc.insecure_channel(address) as channel:
        try:
            yield running, myservice_pb2_grpc.JobSchedulerStub(channel)  # type: ignore[no-untyped-call]  # generated
        finally:
            running.signal(signal.SIGTERM)
            ended = running.wait()
    assert ended.status == 0, ended


def trigger(stub: myservice_pb2_grpc.JobSchedulerStub, name: str) -> str:
    answer = stub.TriggerJob(myservice_pb2.TriggerJobRequest(job_name=name), timeout=30)
    assert answer.success
    return str(answer.job_id)


def test_a_triggered_job_is_stored_before_the_answer_and_run_by_a_process_of_its_own(site: Site) -> None:
    site.configure(MODELS + NO_ROWS)
    with listening(site) as (running, stub):
        ids = [trigger(stub, "drift-check"), trigger(stub, "retrain:Void")]
        assert [job["job_id"] for job in site.jobs()] == ids
        check = deadline()
        while not all(job["state"] in ("COMPLETED", "FAILED") for job in site.jobs()):
            check("both jobs' ends")
        checked, retrained = (site.ok("jobs", "show", job) for job in ids)
    assert (checked["state"], checked["trigger"]) == ("COMPLETED", "grpc")
    assert (retrained["state"], retrained["spec"]["model"]) == ("FAILED", "Void")
    assert "no rows" in retrained["error"]
    assert len({checked["owner"]["pid"], retrained["owner"]["pid"], running.pid}) == 3


@pytest.mark.parametrize("name", ["retrain:Nobody", "retrain:", "retrain", "drift-check:Churn", "", "reboot"])
def test_an_unknown_job_is_an_invalid_argument_and_leaves_nothing(site: Site, name: str) -> None:
    with listening(site) as (_, stub), pytest.raises(grpc.RpcError) as refused:
        trigger(stub, name)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert site.jobs() == []


def test_a_repeat_while_the_job_waits_is_the_same_job(site: Site) -> None:
    # No process is started for either: the resume timer's share of the work.
    died = site.run("drift-check", crash_at="drift-check/complete/before")
    assert died.status == -signal.SIGKILL, died
    [job] = site.jobs()
    with listening(site) as (_, stub):
        assert trigger(stub, "drift-check") == job["job_id"]
        check = deadline()
        while site.jobs()[0]["state"] != "COMPLETED":
            check("the job's end")
    assert len(site.jobs()) == 1
