"""A client of another language and another gRPC implementation, as a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.listener.certificates import Pair, authority, signed
from tests.listener.listening import DEADLINE_S, Listener, listening, silent_redis, stored
from tests.parts import ROOT, missing, program

JOBS = "servicectl.v1.Jobs"
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"


def node(address: str, *calls: Mapping[str, Any], **options: Any) -> list[list[dict[str, Any]]]:
    """Per call, the answers of all its times."""
    if not (ROOT / "node_modules/@grpc/grpc-js").is_dir():
        missing("@grpc/grpc-js", "run `npm ci`")
    ended = subprocess.run(
        [program("node"), str(ROOT / "tests/listener/client.js")],
        input=json.dumps({"address": address, "calls": calls, **options}),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert ended.returncode == 0, ended.stderr
    answers: list[list[dict[str, Any]]] = json.loads(ended.stdout)["answers"]
    return answers


def one(method: str, request: Mapping[str, Any] | None = None, service: str = JOBS, **more: Any) -> dict[str, Any]:
    return {"service": service, "method": method, "request": request or {}, **more}


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with listening(tmp_path) as started:
        yield started


def test_jobs_are_triggered_read_listed_and_watched_to_their_end(listener: Listener) -> None:
    [estates], [first], [again], [retrain] = node(
        listener.address,
        one("TriggerJob", {"job_name": "drift-check"}, "myservice.JobScheduler"),
        one("CheckDrift", {"request_id": "night 1"}),
        one("TriggerJob", {"job_name": "drift-check", "request_id": "night 1"}),
        one("Retrain", {"model_id": "Coffee", "window": "30d", "publish": False, "request_id": "r"}),
    )
    check = estates["messages"][0]["job_id"]
    assert estates["messages"] == [{"success": True, "job_id": check}]
    assert [told["messages"][0]["job"]["job_id"] for told in (first, again)] == [check, check]
    assert (first["messages"][0]["created"], retrain["messages"][0]["created"]) == (False, True)
    [model] = [job for job in listener.stored() if job.kind == "retrain"]
    assert model.spec == {"model": "Coffee", "window": "30d", "publish": False}

    [watched], [got], [listed] = node(
        listener.address,
        one("WatchJob", {"job_id": check}),
        one("GetJob", {"job_id": check}),
        one("ListJobs", {"kind": "retrain"}),
    )

    assert watched["status"] == "OK"
    assert [(event["seq"], event["edge"]) for event in watched["messages"]] == [
        (1, "submit"),
        (2, "claim"),
        (3, "fail"),
    ]
    assert watched["messages"][-1]["to_state"] == "JOB_STATE_FAILED"
    [job] = got["messages"]
    assert (job["job_id"], job["state"], job["trigger"]) == (check, "JOB_STATE_FAILED", "grpc")
    assert (job["exit_status"], job["cure"]) == (1, "start Redis, or correct redis.url")
    assert [job["job_id"] for job in listed["messages"][0]["jobs"]] == [model.job_id]


def test_refusals_have_the_status_that_says_whose_turn_it_is(listener: Listener) -> None:
    [unknown], [estates], [model], [parameter], [absent], [unwatched], [many], [made], [other] = node(
        listener.address,
        one("TriggerJob", {"job_name": "reboot"}),
        one("TriggerJob", {"job_name": "reboot"}, "myservice.JobScheduler"),
        one("Retrain", {"model_id": "Tea"}),
        one("TriggerJob", {"job_name": "sync-production", "params": {"allow_remove": "true"}}),
        one("GetJob", {"job_id": "0190f3a0-0000-7000-8000-000000000000"}),
        one("WatchJob", {"job_id": "none"}),
        one("ListJobs", {"limit": 501}),
        one("Retrain", {"model_id": "House"}),
        one("Retrain", {"model_id": "House", "window": "7d"}),
    )

    known = "unknown job 'reboot'; known: drift-check, sync-production, retrain:Coffee, retrain:House"
    assert (unknown["status"], unknown["details"]) == ("INVALID_ARGUMENT", known)
    assert (estates["status"], estates["details"]) == ("INVALID_ARGUMENT", known)
    assert model["status"] == "INVALID_ARGUMENT"
    assert "it knows: Coffee, House" in model["details"]
    assert parameter["status"] == "INVALID_ARGUMENT"
    assert "no parameter 'allow_remove'" in parameter["details"]
    assert [told["status"] for told in (absent, unwatched)] == ["NOT_FOUND", "NOT_FOUND"]
    assert many["status"] == "INVALID_ARGUMENT"
    assert other["status"] == "FAILED_PRECONDITION"
    assert made["messages"][0]["job"]["job_id"] in other["details"]


def test_sixty_four_triggers_of_one_job_at_once_make_one_job(tmp_path: Path) -> None:
    with silent_redis() as redis, listening(tmp_path, redis=redis) as listener:
        [answers] = node(listener.address, one("TriggerJob", {"job_name": "drift-check"}, times=64))

        assert {answer["status"] for answer in answers} == {"OK"}
        [job] = listener.stored()
    assert {answer["messages"][0]["job"]["job_id"] for answer in answers} == {job.job_id}
    assert sum(answer["messages"][0]["created"] for answer in answers) == 1


def test_health_and_reflection_are_the_standard_ones(listener: Listener) -> None:
    [whole], [ours], [estates], [nobody], [services], [called] = node(
        listener.address,
        *(one("Check", {"service": name}, HEALTH) for name in ("", JOBS, "myservice.JobScheduler", "nobody")),
        one("ServerReflectionInfo", {"list_services": ""}, REFLECTION),
        one("TriggerJob", {"job_name": "drift-check"}, reflected=True),
    )

    assert [told["messages"] for told in (whole, ours, estates)] == [[{"status": "SERVING"}]] * 3
    assert nobody["status"] == "NOT_FOUND"
    listed = {service["name"] for service in services["messages"][0]["list_services_response"]["service"]}
    assert listed == {JOBS, "myservice.JobScheduler", HEALTH, REFLECTION}
    assert called["messages"][0]["job"]["kind"] == "drift-check"


def test_a_unix_socket_serves_it_too(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with listening(tmp_path, address=f"unix:{folder}/listen.sock") as listener:
        [answer] = node(listener.address, one("CheckDrift"))[0]

    assert answer["status"] == "OK"
    assert folder.stat().st_mode & 0o777 == 0o750


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pair, Pair]:
    folder = tmp_path_factory.mktemp("certificates")
    return folder, authority(folder, "ours"), authority(folder, "theirs")


def test_with_client_certificates_only_those_of_the_right_authority_get_in(
    tmp_path: Path, authorities: tuple[Path, Pair, Pair]
) -> None:
    folder, ours, theirs = authorities
    server, caller, stranger = (
        signed(ours, folder, "server"),
        signed(ours, folder, "caller"),
        signed(theirs, folder, "x"),
    )
    listen = f"tls_certificate = '{server.certificate}'\ntls_key = '{server.key}'\nclient_ca = '{ours.certificate}'"

    def tls(by: Pair, who: Pair | None) -> dict[str, str]:
        own = {} if who is None else {"certificate": str(who.certificate), "key": str(who.key)}
        return {"authority": str(by.certificate), **own}

    # Every address of the machine: allowed, since callers are checked.
    with listening(tmp_path, listen=listen, address="0.0.0.0:0") as listener:
        address = f"localhost:{listener.address.rpartition(':')[2]}"
        [[without]] = node(address, one("CheckDrift"), tls=tls(ours, None))
        [[foreign]] = node(address, one("CheckDrift"), tls=tls(ours, stranger))
        [[plain]] = node(address, one("CheckDrift"))
        [[distrusted]] = node(address, one("CheckDrift"), tls=tls(theirs, caller))
        assert stored(tmp_path) == []
        [[known]] = node(address, one("CheckDrift"), tls=tls(ours, caller))
        [job] = stored(tmp_path)
        assert re.search(rf"job {job.short_id} \(drift-check\) for ipv[46]:.* caller\n", listener.stderr)

    assert {told["status"] for told in (without, foreign, plain, distrusted)} == {"UNAVAILABLE"}
    assert (known["status"], known["messages"][0]["job"]["job_id"]) == ("OK", job.job_id)


def test_with_a_token_only_who_knows_it_gets_in(tmp_path: Path, authorities: tuple[Path, Pair, Pair]) -> None:
    folder, ours, _ = authorities
    server = signed(ours, folder, "token-server")
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    token.chmod(0o600)
    listen = f"tls_certificate = '{server.certificate}'\ntls_key = '{server.key}'\ntoken_file = 'token'"
    tls = {"authority": str(ours.certificate)}
    with listening(tmp_path, listen=listen, address="0.0.0.0:0") as listener:
        address = f"localhost:{listener.address.rpartition(':')[2]}"
        calls = (one("CheckDrift"), one("Check", service=HEALTH), one("WatchJob", {"job_id": "x"}))
        without = node(address, *calls, tls=tls)
        wrong = node(address, *calls, tls=tls, token="0123456789abcdeF")
        assert stored(tmp_path) == []
        right = node(address, *calls, tls=tls, token="0123456789abcdef")
        assert "0123456789abcde" not in listener.stderr

    assert {told["status"] for [told] in without + wrong} == {"UNAUTHENTICATED"}
    assert [told["status"] for [told] in right] == ["OK", "OK", "NOT_FOUND"]
