"""Alarms: stored first, told by every sink sooner or later, never a reason to stop a check."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from uuid import uuid4

import pytest

from servicectl.actions.deliver_alarms import PATIENCE_S, deliver
from servicectl.actions.world import World
from servicectl.cli.drift_views import sparkline
from servicectl.clock import Clock
from servicectl.config import AlarmConfig, Config, StateConfig
from servicectl.errors import ConfigError, PartyUnavailable, UsageError
from servicectl.estate.alarm_sinks import AppriseSink, CommandSink, WebhookSink, signature
from servicectl.estate.alarms import Alarm
from tests.parts import free_port
from tests.parts.estate import ALL_ROWS, MODELS, Saved, Site, outcomes

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
CLOCK = Clock(now=lambda: NOW, monotonic=lambda: 0.0, sleep=lambda _seconds: None)
SECRET = "do-not-show-me"
DRIFT = ("Loan", "age", "raised", "CRITICAL", "CRITICAL (raised): feature age of Loan 0.1.0: why")
ALARM = Alarm("Loan", "age", "raised", "CRITICAL", "why", None, NOW.replace(tzinfo=None), str(uuid4()))


@dataclass
class Receiver:
    """A real HTTP server that remembers what it was sent, and answers with these statuses first, then 204."""

    statuses: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""


@contextmanager
def receiver(*statuses: int) -> Iterator[Receiver]:
    told = Receiver(list(statuses))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.got.append((dict(self.headers), body))
            self.send_response(told.statuses.pop(0) if told.statuses else 204)
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{server.server_port}/hook/{SECRET}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def world(folder: Path, alarms: AlarmConfig, now: datetime = NOW) -> World:
    clock = Clock(now=lambda: now, monotonic=lambda: 0.0, sleep=lambda _seconds: None)
    return World(Config(state=StateConfig(str(folder / "state")), alarms=alarms), clock=clock)


def test_a_webhook_gets_the_alarm_as_json_signed_over_its_time_and_body() -> None:
    with receiver() as told:
        WebhookSink(told.url, SECRET, 5, CLOCK).send(ALARM)

    [(headers, body)] = told.got
    assert json.loads(body) == {
        "alarm_id": ALARM.alarm_id, "model_id": "Loan", "feature": "age", "change": "raised", "verdict": "CRITICAL",
        "text": "why", "job_id": None, "raised_at": "2026-06-01T12:00:00Z",
    }  # fmt: skip
    assert headers["X-Servicectl-Timestamp"] == str(int(NOW.timestamp()))
    assert headers["X-Servicectl-Signature"] == signature(SECRET, headers["X-Servicectl-Timestamp"], body)


def test_a_signature_is_what_openssl_makes_of_it() -> None:
    # printf '1.{}' | openssl dgst -sha256 -hmac key
    assert signature("key", "1", b"{}") == "sha256=1ba6b8171186efc613e8bcc0cbdab2748f24984d7c5a84faa2637afa0e40d224"


def test_a_webhook_without_a_secret_is_not_signed() -> None:
    with receiver() as told:
        WebhookSink(told.url, None, 5, CLOCK).send(ALARM)

    assert "X-Servicectl-Signature" not in told.got[0][0]


def test_a_webhook_is_tried_again_when_it_is_busy_and_then_given_up() -> None:
    with receiver(503, 429) as told:
        WebhookSink(told.url, None, 5, CLOCK).send(ALARM)
        assert len(told.got) == 3
    with receiver(503, 503, 503, 503) as told, pytest.raises(PartyUnavailable, match="answered 503") as caught:
        WebhookSink(told.url, SECRET, 5, CLOCK).send(ALARM)
    assert len(told.got) == 3
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 302])
def test_a_webhook_that_refuses_is_not_hammered_nor_followed_elsewhere(status: int) -> None:
    with receiver(status) as told, pytest.raises(ConfigError, match=f"answered {status}") as caught:
        WebhookSink(told.url, SECRET, 5, CLOCK).send(ALARM)
    assert len(told.got) == 1
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "https://", "hook"])
def test_only_http_addresses_are_webhooks(url: str) -> None:
    with pytest.raises(ConfigError, match="no http"):
        WebhookSink(url, None, 5, CLOCK).send(ALARM)


def test_a_command_reads_the_alarm_as_json_and_its_status_counts(tmp_path: Path) -> None:
    CommandSink(["tee", str(tmp_path / "told")], 10).send(ALARM)

    assert json.loads((tmp_path / "told").read_text())["alarm_id"] == ALARM.alarm_id
    with pytest.raises(PartyUnavailable, match="ended with status 1"):
        CommandSink(["false"], 10).send(ALARM)
    with pytest.raises(PartyUnavailable, match="did not end within"):
        CommandSink(["sleep", "60"], 0.05).send(ALARM)
    with pytest.raises(ConfigError, match="No such file"):
        CommandSink([str(tmp_path / "absent")], 10).send(ALARM)


def test_apprise_that_is_not_installed_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "apprise", None)
    with pytest.raises(ConfigError) as caught:
        AppriseSink(["json://host"]).send(ALARM)
    assert "servicectl[apprise]" in caught.value.cure


def test_a_sink_that_is_down_loses_nothing_and_does_not_hold_up_the_others(tmp_path: Path) -> None:
    with receiver(*[503] * 3) as told:
        at = world(tmp_path, AlarmConfig(webhook=told.url, command=("tee", str(tmp_path / "told"))))
        at.alarms.raise_once(str(uuid4()), [DRIFT, ("Loan", "city", "raised", "WARNING", "two")])

        assert deliver(at) == 2
        assert len(told.got) == 3  # asked for the first alarm only
        states = {(one.sink, one.delivered_at is None, one.error) for one in at.alarms.deliveries()}
        assert states == {
            ("command", False, None),
            ("webhook", True, "the alarm webhook is not available: 127.0.0.1 answered 503"),
        }

        again = world(tmp_path, at.config.alarms)
        assert deliver(again) == 0
        assert deliver(again) == 0
    assert len(told.got) == 5
    assert {one.attempts for one in again.alarms.deliveries() if one.sink == "webhook"} == {2}


CITY = ("Loan", "city", "raised", "WARNING", "two")


@pytest.mark.parametrize("status", [400, 413])
def test_an_alarm_that_a_sink_refuses_does_not_keep_the_others_from_it_and_is_given_up(
    tmp_path: Path, status: int
) -> None:
    with receiver(status) as told:
        at = world(tmp_path, AlarmConfig(webhook=told.url))
        at.alarms.raise_once(str(uuid4()), [DRIFT, CITY])

        assert deliver(at) == 1
        refused, taken = (json.loads(body)["alarm_id"] for _, body in told.got)
        assert {one.alarm_id: one.delivered_at is None for one in at.alarms.deliveries()} == {
            refused: True,
            taken: False,
        }
        for tries in (1, 2):
            told.statuses.append(status)
            assert deliver(world(tmp_path, at.config.alarms)) == 1, tries
        assert deliver(world(tmp_path, at.config.alarms)) == 0
    assert len(told.got) == 4


def test_what_a_run_does_not_get_to_in_its_time_is_left_to_the_next_one(tmp_path: Path) -> None:
    with receiver() as told:
        at = world(tmp_path, AlarmConfig(webhook=told.url))
        slow = World(at.config, clock=Clock(at.clock.now, lambda: len(told.got) * PATIENCE_S, at.clock.sleep))
        at.alarms.raise_once(str(uuid4()), [DRIFT, CITY, ("Loan", "town", "raised", "WARNING", "three")])

        assert deliver(slow) == 2
        assert len(told.got) == 1
        assert deliver(at) == 0
    assert len(told.got) == 3


def test_an_old_alarm_is_no_news_for_a_new_sink(tmp_path: Path) -> None:
    world(tmp_path, AlarmConfig()).alarms.raise_once(str(uuid4()), [DRIFT])
    with receiver() as told:
        assert deliver(world(tmp_path, AlarmConfig(webhook=told.url), NOW + timedelta(days=31))) == 0
        assert told.got == []
        assert deliver(world(tmp_path, AlarmConfig(webhook=told.url), NOW + timedelta(days=1))) == 0
        assert len(told.got) == 1


def test_a_secret_file_that_is_absent_keeps_the_alarms_for_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = world(tmp_path, AlarmConfig(webhook="https://x/y", webhook_secret_file=str(tmp_path / "absent")))
    at.alarms.raise_once(str(uuid4()), [DRIFT])

    assert deliver(at) == 1
    assert "does not exist" in capsys.readouterr().err


def test_an_alarm_is_acknowledged_by_its_last_characters(tmp_path: Path) -> None:
    alarms = world(tmp_path, AlarmConfig()).alarms
    alarms.raise_once(str(uuid4()), [DRIFT, ("Loan", "city", "cleared", "PASS", "over")])
    [open_one] = alarms.newest(open_only=True)

    [seen] = alarms.acknowledge([open_one.short_id], "ada")

    assert (seen.alarm_id, seen.acknowledged_by, seen.acknowledged_at) == (
        open_one.alarm_id, "ada", NOW.replace(tzinfo=None),
    )  # fmt: skip
    assert alarms.newest(open_only=True) == []
    assert alarms.standing().verdicts[("Loan", "age")] == "CRITICAL"
    with pytest.raises(UsageError, match="no alarm 'ffff"):
        alarms.acknowledge(["ffffffffffff"], "ada")


# -- the commands, on the estate -------------------------------------------------------------------------------------------


@pytest.fixture
def drifted(site: Site, published: Saved) -> Site:
    site.restore(published)
    site.estate.rows(0, ALL_ROWS)
    return site


def alarms_section(extra: str) -> str:
    return f"{MODELS}\n[alarms]\n{extra}\n"


def test_a_check_is_done_while_the_webhook_is_down_and_a_later_run_tells_it(drifted: Site) -> None:
    drifted.configure(alarms_section(f'webhook = "http://127.0.0.1:{free_port()}/{SECRET}"\ntimeout_s = 2'))
    ended = drifted.run("--json", "drift-check", "--queue-only")
    assert ended.status == 0, ended
    assert outcomes(ended.told) == [("drift-check", "drift")]
    assert SECRET not in ended.stderr + ended.stdout
    [alarm] = drifted.ok("alarms", "list")["alarms"]
    assert (alarm["feature"], alarm["verdict"], alarm["acknowledged_at"]) == ("usage", "CRITICAL", None)
    assert [one["delivered_at"] for one in alarm["deliveries"]] == [None]
    [waiting] = [job for job in drifted.jobs() if job["kind"] == "deliver-alarms"]

    with receiver() as told:
        drifted.configure(alarms_section(f'webhook = "{told.url}"'))
        resumed = drifted.ok("jobs", "resume", waiting["id"], WEBHOOK_SECRET="key")
    assert outcomes(resumed) == [("deliver-alarms", "delivered")]
    [(headers, body)] = told.got
    assert headers["X-Servicectl-Signature"] == signature("key", headers["X-Servicectl-Timestamp"], body)
    assert json.loads(body)["alarm_id"] == alarm["alarm_id"]


def test_the_retrains_are_queued_before_any_sink_is_told(drifted: Site, tmp_path: Path) -> None:
    """The sink kills the check that tells it: what was decided must be on record by then."""
    program = tmp_path / "kill-the-check"
    program.write_text("#!/bin/sh\nkill -9 $PPID\n")
    program.chmod(0o755)
    drifted.configure(alarms_section(f'command = ["{program}"]'))

    died = drifted.run("drift-check", "--queue-only")

    assert died.status == -signal.SIGKILL, died
    assert {(job["kind"], job["state"]) for job in drifted.jobs()[2:]} == {
        ("drift-check", "COMPLETED"),
        ("retrain", "PENDING"),
        ("deliver-alarms", "INTERRUPTED"),
    }


def test_a_standing_alarm_is_told_again_until_somebody_has_seen_it(drifted: Site) -> None:
    drifted.configure(alarms_section('reminder = "0s"'))
    assert "(raised)" in drifted.run("drift-check", "--queue-only").stderr
    again = drifted.run("drift-check", "--queue-only")
    assert "ALARM CRITICAL (reminder): feature usage of Churn" in again.stderr
    newest = drifted.ok("alarms", "list")["alarms"][0]
    assert newest["change"] == "reminder"
    assert "acknowledged by" in drifted.run("alarms", "ack", newest["id"]).stdout
    assert "ALARM" not in drifted.run("drift-check", "--queue-only").stderr
    assert newest["id"] not in drifted.run("alarms", "list").stdout
    assert newest["id"] in drifted.run("alarms", "list", "--all").stdout


def test_a_year_of_checks_fits_on_a_line_and_keeps_its_peaks() -> None:
    year = [0.01] * 364 + [1.0]
    year[180] = 1.0

    line = sparkline(year)

    assert (len(line), line.count("█")) == (60, 2)
    assert line[-1] == line[year.index(1.0) * 60 // 365] == "█"
    assert sparkline([None] * 600) == "·" * 60
    assert sparkline([0.0, None, 1.0]) == "▁·█"


def test_the_history_of_a_feature_is_a_line_a_table_and_json(drifted: Site) -> None:
    for _ in range(2):
        drifted.run("drift-check", "--queue-only")
    told = drifted.ok("drift", "history", "Churn", "usage")
    assert [one["verdict"] for one in told["results"]] == ["CRITICAL", "CRITICAL"]
    shown = drifted.run("drift", "history", "Churn").stdout
    assert "██" in shown
    assert shown.count("CRITICAL") == 1
    one = drifted.run("drift", "history", "Churn", "usage").stdout
    assert one.count("CRITICAL") == 2
    assert drifted.run("drift", "history", "Nobody").stdout == "no check of this has been recorded\n"
