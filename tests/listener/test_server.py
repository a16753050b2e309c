from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import duckdb
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from servicectl._pb.v1 import jobs_pb2
from servicectl.jobs.model import NewJob, State
from tests.listener.listening import (
    DEADLINE_S,
    Listener,
    busy_store,
    command,
    environment,
    listening,
    silent_redis,
    stored,
    until,
    world,
)
from tests.parts import ROOT


@contextmanager
def refused(status: grpc.StatusCode, text: str = "") -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert (caught.value.code(), text in caught.value.details()) == (status, True), caught.value


# --- the job is stored before the reply, and nothing is lost ---


def test_killed_between_the_commit_and_the_reply_the_job_is_there_and_is_run_by_the_next_listener(
    tmp_path: Path,
) -> None:
    with listening(tmp_path, env={"SERVICECTL_CRASH_AT": "listen/committed"}) as listener:
        with refused(grpc.StatusCode.UNAVAILABLE):
            listener.ask("drift-check", request_id="once")
        assert listener.process.wait(DEADLINE_S) == -signal.SIGKILL
    [job] = stored(tmp_path)
    assert (job.state, job.trigger, job.attempts) == (State.PENDING, "grpc", 0)

    with listening(tmp_path) as listener:
        until(lambda: stored(tmp_path)[0].ended, "the next listener runs it")
        again = listener.ask("drift-check", request_id="once")

    assert (again.job.job_id, again.created) == (job.job_id, False)
    assert len(stored(tmp_path)) == 1


def test_killed_between_the_commit_and_the_reply_the_job_is_run_by_jobs_resume(tmp_path: Path) -> None:
    with listening(tmp_path, env={"SERVICECTL_CRASH_AT": "listen/committed"}) as listener:
        with refused(grpc.StatusCode.UNAVAILABLE):
            listener.trigger("retrain:House")
        listener.process.wait(DEADLINE_S)

    resumed = subprocess.run(command(tmp_path, "jobs", "resume"), cwd=ROOT, env=environment(), capture_output=True)

    [job] = stored(tmp_path)
    assert (resumed.returncode, job.kind, job.state, job.attempts) == (1, "retrain", State.FAILED, 1)


def test_an_operators_waiting_job_is_neither_begun_nor_exchanged_for_a_callers(tmp_path: Path) -> None:
    with listening(tmp_path) as listener:
        mine = world(tmp_path)
        operators = mine.runner.submit(NewJob("sync-production", "sync-production", {"allow_remove": True})).job
        check = listener.trigger("drift-check")
        listener.events(check)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, operators.job_id):
            listener.trigger("sync-production")

    assert mine.runner.table.get(operators.job_id).state is State.PENDING


def test_jobs_beyond_the_limit_wait_and_start_when_one_ends(tmp_path: Path) -> None:
    with silent_redis() as redis, listening(tmp_path, listen="max_jobs = 1", redis=redis) as listener:
        first, second = listener.trigger("drift-check"), listener.trigger("sync-production")
        table = world(tmp_path).runner.table
        until(lambda: table.get(first).state is State.RUNNING, "the first runs")
        until(lambda: "1 job(s) wait" in listener.stderr, "the second waits")
        assert table.get(second).state is State.PENDING
        os.kill(int((table.get(first).owner or {})["pid"]), signal.SIGTERM)

        until(lambda: table.get(second).state is State.RUNNING, "the second runs")

        assert table.get(first).state is State.PENDING


def test_sigterm_ends_the_listener_and_its_job_goes_on(tmp_path: Path) -> None:
    with silent_redis() as redis, listening(tmp_path, redis=redis) as listener:
        job = listener.trigger("drift-check")
        runner = world(tmp_path).runner
        until(lambda: runner.table.get(job).state is State.RUNNING, "it runs")

        assert listener.end() == 0

        assert runner.locks.alive("drift-check")
        assert "1 job(s) go on without the listener" in listener.stderr
    until(lambda: runner.table.get(job).ended, "it ended by itself")
    assert runner.table.get(job).attempts == 1


def test_no_connection_to_the_store_is_held_between_calls(tmp_path: Path) -> None:
    with listening(tmp_path) as listener:
        listener.events(listener.trigger("drift-check"))
        file = tmp_path / "state/servicectl.duckdb"

        # DuckDB refuses while another process has the file open.
        with duckdb.connect(str(file)) as connection:
            assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
        open_files = [str(link.readlink()) for link in Path(f"/proc/{listener.process.pid}/fd").iterdir()]

    assert [name for name in open_files if "servicectl.duckdb" in name] == []


def test_a_repeated_request_is_the_same_job_after_its_end_and_for_nothing_else(tmp_path: Path) -> None:
    with listening(tmp_path) as listener:
        first = listener.ask("retrain:House", request_id="a", window="7d")
        listener.events(first.job.job_id)

        again = listener.ask("retrain:House", request_id="a", window="7d")
        assert (again.job.job_id, again.created) == (first.job.job_id, False)
        assert again.job.state == jobs_pb2.JOB_STATE_FAILED
        for name, params in (("retrain:Coffee", {}), ("retrain:House", {"window": "8d"})):
            with refused(grpc.StatusCode.INVALID_ARGUMENT, "asks for something else"):
                listener.ask(name, request_id="a", **params)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "at most 200"):
            listener.ask("drift-check", request_id="a" * 201)
        other = listener.ask("retrain:House", request_id="b", window="7d")

    assert (other.created, len(stored(tmp_path))) == (True, 2)


def test_a_watch_is_taken_up_again_where_it_broke_off(tmp_path: Path) -> None:
    with listening(tmp_path) as listener:
        job = listener.trigger("drift-check")
        whole = listener.events(job)

        rest = listener.events(job, after=whole[0].seq)

    assert [event.edge for event in whole] == ["submit", "claim", "fail"]
    assert rest == whole[1:]


# --- trouble is not the caller's fault, and does not end the listener ---


def test_a_store_that_is_busy_or_damaged_is_unavailable_and_the_listener_lives(tmp_path: Path) -> None:
    with listening(tmp_path, lock_wait_s=0.1) as listener:
        with busy_store(tmp_path), refused(grpc.StatusCode.UNAVAILABLE, "was busy"):
            listener.trigger("drift-check")
        job = listener.trigger("drift-check")
        listener.events(job)
        (tmp_path / "state/servicectl.duckdb").write_bytes(b"no database" * 1000)

        with refused(grpc.StatusCode.UNAVAILABLE, "servicectl.duckdb"):
            listener.trigger("drift-check")

        assert listener.health() == health_pb2.HealthCheckResponse.SERVING


def test_garbage_on_the_port_does_not_harm_the_listener(tmp_path: Path) -> None:
    with listening(tmp_path) as listener:
        host, _, port = listener.address.rpartition(":")
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        for junk in (os.urandom(4096), b"GET / HTTP/1.1\r\n\r\n", preface + os.urandom(4096), preface[:9], b""):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(junk)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(DEADLINE_S)
                while _more(connection):
                    pass

        assert listener.health() == health_pb2.HealthCheckResponse.SERVING
        assert listener.trigger("drift-check")


def _more(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(4096))
    except ConnectionResetError:
        return False


# --- bounds ---


def test_an_oversized_message_is_refused_and_nothing_is_stored(tmp_path: Path) -> None:
    with listening(tmp_path) as listener, refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        listener.trigger("x" * (65 << 10))

    assert stored(tmp_path) == []


def test_a_long_or_hostile_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with listening(tmp_path) as listener:
        for name in ("x" * 60_000, "retrain:\x00", "drift-check\n", "retrain:" + "é" * 20_000, "'; DROP TABLE jobs"):
            with refused(grpc.StatusCode.INVALID_ARGUMENT):
                listener.trigger(name)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "known: drift-check"):
            listener.trigger("x" * 60_000)

    assert stored(tmp_path) == []


def test_calls_beyond_the_limit_are_refused_while_the_others_run(tmp_path: Path) -> None:
    with (
        listening(tmp_path, listen="max_calls = 2\ncalls_per_second = 1000.0") as listener,
        ThreadPoolExecutor(2) as pool,
    ):
        with busy_store(tmp_path):
            held = [pool.submit(listener.insist, name) for name in ("drift-check", "sync-production")]
            until(listener.is_full, "two calls are in hand")

            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent"):
                listener.trigger("retrain:House")

        assert {call.result() for call in held} == {job.job_id for job in stored(tmp_path)}


def test_streams_leave_room_for_calls(tmp_path: Path) -> None:
    with silent_redis() as redis, listening(tmp_path, redis=redis) as listener, listener.jobs() as jobs:
        job = listener.trigger("drift-check")
        watches = [jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job)) for _ in range(16)]
        assert [next(iter(watch)).edge for watch in watches] == ["submit"] * 16

        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "16 streams"):
            next(iter(jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job))))
        assert listener.trigger("drift-check") == job
        watches[0].cancel()

        def another() -> bool:
            try:
                return next(iter(jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job)))).edge == "submit"
            except grpc.RpcError:
                return False

        until(another, "a watch that was given up makes room for another")


def test_calls_beyond_the_rate_are_refused_and_health_is_still_told(tmp_path: Path) -> None:
    with listening(tmp_path, listen="max_calls = 3\ncalls_per_second = 0.001") as listener:
        for _ in range(3):
            listener.trigger("drift-check")

        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down"):
            listener.trigger("drift-check")

        assert [listener.health() for _ in range(5)] == [health_pb2.HealthCheckResponse.SERVING] * 5


# --- beginning and ending ---


def test_sigterm_lets_the_call_in_hand_finish_and_ends_the_streams(tmp_path: Path) -> None:
    with (
        silent_redis() as redis,
        listening(tmp_path, listen="max_calls = 3\ncalls_per_second = 1000.0", redis=redis) as listener,
        listener.jobs() as jobs,
        listener.channel() as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        job = listener.trigger("drift-check")
        table = world(tmp_path).runner.table
        until(lambda: table.get(job).state is State.RUNNING, "it runs")
        seen = len(table.events(job))
        watch = iter(jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job)))
        told = [next(watch).edge for _ in range(seen)]
        health = iter(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()))
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        with busy_store(tmp_path):
            held = pool.submit(listener.insist, "sync-production")
            until(listener.is_full, "the call is in hand")
            listener.process.send_signal(signal.SIGTERM)
            with refused(grpc.StatusCode.UNAVAILABLE, "the listener is ending"):
                next(watch)

        assert held.result() in {one.job_id for one in stored(tmp_path)}
        assert listener.process.wait(DEADLINE_S) == 0
        assert told == ["submit", "claim"]


def test_systemd_is_told_of_readiness_of_life_and_of_the_end(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE_S)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
        with listening(tmp_path, env=env) as listener:
            ready, alive, again = (manager.recv(1000).decode() for _ in range(3))
            listener.end()
            rest = _until_told(manager, "STOPPING=1")

    assert ready == f"READY=1\nSTATUS=listening on {listener.address}"
    assert {alive, again, *rest} <= {"WATCHDOG=1", "STOPPING=1"}


def _until_told(manager: socket.socket, wanted: str) -> list[str]:
    told: list[str] = []
    while wanted not in told:
        told.append(manager.recv(1000).decode())
    return told


def test_the_process_of_a_job_inherits_neither_systemds_channel_nor_signals(tmp_path: Path) -> None:
    env = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "60000000"}
    with silent_redis() as redis, listening(tmp_path, redis=redis, env=env) as listener:
        job = listener.trigger("drift-check")
        table = world(tmp_path).runner.table
        until(lambda: table.get(job).state is State.RUNNING, "it runs")
        pid = int((table.get(job).owner or {})["pid"])
        names = {entry.partition(b"=")[0] for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}
        status = Path(f"/proc/{pid}/status").read_text()
        session = os.getsid(pid)

    assert not {b"NOTIFY_SOCKET", b"WATCHDOG_USEC"} & names
    assert "could not be told" in listener.stderr
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    assert blocked & (1 << (signal.SIGTERM - 1) | 1 << (signal.SIGINT - 1)) == 0
    assert session == pid


def test_what_serves_is_imported_by_listen_alone() -> None:
    heavy = "{'grpc', 'grpc_health', 'grpc_reflection', 'servicectl.listener'}"
    program = f"import sys, servicectl.cli.app; sys.exit(len({heavy} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_a_listener_that_was_killed_is_followed_by_another_at_the_same_place(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o750)
    address = f"unix:{folder}/listen.sock"
    with listening(tmp_path, address=address) as listener:
        listener.end(signal.SIGKILL)
    assert (folder / "listen.sock").exists()

    with listening(tmp_path, address=address) as listener:
        assert listener.trigger("drift-check")
        assert (folder / "listen.sock").stat().st_mode & 0o777 == 0o660
        assert listener.end(signal.SIGINT) == 0
    assert not (folder / "listen.sock").exists()


def test_a_second_listener_does_not_take_a_living_ones_place(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with listening(tmp_path, address=f"unix:{folder}/listen.sock") as by_path, listening(tmp_path) as by_port:
        living: tuple[Listener, ...] = (by_path, by_port)
        for one in living:
            second = subprocess.run(
                command(tmp_path, "listen", "--address", one.address),
                cwd=ROOT,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
            )

            assert second.returncode == 75
            assert "another process has it" in second.stderr
            assert one.trigger("drift-check")
