from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from servicectl._pb import myservice_pb2, myservice_pb2_grpc
from servicectl.errors import ConfigError
from servicectl.listener.server import checked_address
from tests.parts import ROOT

# What a listener's process runs: job names say how the trigger ends, and it can be held until a file appears.
PROGRAM = """
import sys, time
from pathlib import Path
from servicectl.errors import Busy, BadData, PartyUnavailable, ServicectlError, UsageError
from servicectl.listener.server import serve

def trigger(name):
    kind, _, detail = name.partition(":")
    if kind == "held":
        Path(detail + ".started").touch()
        while not Path(detail).exists():
            time.sleep(0.01)
    elif kind == "unknown":
        raise UsageError("no model 'X'\\nhere", cure="servicectl models")
    elif kind == "busy":
        raise Busy("retrain of X is running", cure="wait")
    elif kind == "bad":
        raise BadData("one class only")
    elif kind == "defect":
        raise ZeroDivisionError("password=hunter2")
    return "job-of-" + name

try:
    serve(sys.argv[1], trigger, max_message_bytes=4096, max_calls=2, on_ready=lambda at: print(at, flush=True))
except ServicectlError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print("drained", flush=True)
"""


@contextmanager
def listener(address: str = "127.0.0.1:0") -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", PROGRAM, address]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        served = process.stdout.readline().strip()
        if not served:
            raise RuntimeError(process.stderr.read())
        yield process, served
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def trigger(address: str, job_name: str) -> myservice_pb2.TriggerJobResponse:
    with grpc.insecure_channel(address) as channel:
        stub = myservice_pb2_grpc.JobSchedulerStub(channel)
        return stub.TriggerJob(myservice_pb2.TriggerJobRequest(job_name=job_name), timeout=20)


def refusal(address: str, job_name: str) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        trigger(address, job_name)
    return caught.value.code(), caught.value.details()


def appears(path: Path) -> None:
    limit = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < limit, f"{path} did not appear"
        time.sleep(0.01)


def test_a_triggered_job_answers_with_its_id() -> None:
    with listener() as (_, address):
        response = trigger(address, "retrain:House_Price")

    assert (response.success, response.job_id) == (True, "job-of-retrain:House_Price")


def test_errors_become_the_statuses_a_caller_can_act_on() -> None:
    with listener() as (process, address):
        assert refusal(address, "unknown") == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "no model 'X' here (servicectl models)",
        )
        assert refusal(address, "busy") == (grpc.StatusCode.UNAVAILABLE, "retrain of X is running (wait)")
        assert refusal(address, "bad") == (grpc.StatusCode.INTERNAL, "one class only")
        assert refusal(address, "defect") == (grpc.StatusCode.INTERNAL, "ZeroDivisionError: see the listener's log")
        assert trigger(address, "still-there").success
        process.terminate()
        process.wait()
        assert process.stderr is not None
        assert "ZeroDivisionError" in process.stderr.read()


def test_an_oversized_message_is_refused_before_the_trigger_sees_it() -> None:
    with listener() as (_, address):
        status, _ = refusal(address, "x" * 5000)

    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_calls_beyond_the_limit_are_refused_while_the_others_run(tmp_path: Path) -> None:
    with listener() as (_, address), ThreadPoolExecutor(2) as pool:
        held = [pool.submit(trigger, address, f"held:{tmp_path / name}") for name in ("a", "b")]
        for name in ("a.started", "b.started"):
            appears(tmp_path / name)

        status, _ = refusal(address, "one-too-many")
        for name in ("a", "b"):
            (tmp_path / name).touch()

        assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert [call.result().success for call in held] == [True, True]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_call_in_hand_finish_and_serve_returns(tmp_path: Path, end: signal.Signals) -> None:
    with listener() as (process, address), ThreadPoolExecutor(1) as pool:
        held = pool.submit(trigger, address, f"held:{tmp_path / 'go'}")
        appears(tmp_path / "go.started")

        process.send_signal(end)
        (tmp_path / "go").touch()

        assert held.result().job_id == f"job-of-held:{tmp_path / 'go'}"
        assert process.wait(timeout=20) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "drained\n"


def test_a_unix_socket_is_served_only_to_its_owner_and_group_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sock"
    with listener(f"unix:{path}") as (process, address):
        assert trigger(address, "drift-check").success
        assert path.stat().st_mode & 0o777 == 0o660
        process.terminate()
        assert process.wait(timeout=20) == 0

    assert not path.exists()


def test_a_socket_file_left_by_a_killed_listener_is_taken_over(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'jobs.sock'}"
    with listener(address) as (process, _):
        process.kill()
        process.wait()
    assert (tmp_path / "jobs.sock").exists()

    with listener(address) as (_, again):
        assert trigger(again, "drift-check").success


def test_a_second_listener_does_not_take_a_living_ones_place(tmp_path: Path) -> None:
    with listener(f"unix:{tmp_path / 'jobs.sock'}") as (_, by_path), listener() as (_, by_port):
        for address in (by_path, by_port):
            second = subprocess.run(
                [sys.executable, "-c", PROGRAM, address], cwd=ROOT, capture_output=True, text=True, timeout=60
            )

            assert second.returncode == 1
            assert "Busy: " in second.stderr
            assert "another process has it" in second.stderr
            assert trigger(address, "drift-check").success


@pytest.mark.parametrize(
    ("address", "bound"),
    [
        ("127.0.0.1:50054", "127.0.0.1:50054"),
        ("127.8.9.1:50054", "127.8.9.1:50054"),
        ("localhost:50054", "127.0.0.1:50054"),
        ("[::1]:50054", "[::1]:50054"),
        ("unix:/run/servicectl.sock", "unix:/run/servicectl.sock"),
        ("unix:///run/servicectl.sock", "unix:/run/servicectl.sock"),
    ],
)
def test_addresses_of_this_machine_alone_are_taken(address: str, bound: str) -> None:
    assert checked_address(address) == bound


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:50054", "[::]:50054", "10.0.0.7:50054", "host.example:50054", "[::ffff:0.0.0.0]:1", "*:50054", "1:50054"],
)
def test_an_address_other_machines_reach_is_refused_with_the_cure(address: str) -> None:
    with pytest.raises(ConfigError, match="reached from other machines") as caught:
        checked_address(address)

    assert "127.0.0.1" in caught.value.cure


@pytest.mark.parametrize("address", ["", ":50054", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", "dns:///localhost:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        checked_address(address)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"ConfigError: the folder of .* does not exist"),
        listener(f"unix:{tmp_path}/absent/jobs.sock"),
    ):
        pass


def test_a_port_that_is_taken_by_another_program_is_told() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"

        with pytest.raises(RuntimeError, match="Busy: cannot listen on"), listener(address):
            pass
