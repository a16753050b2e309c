"""Where alarms are told beside the journal: a command, a webhook, any service that Apprise knows.

A sink is told of one alarm at a time and may be told of one twice (when the process dies between telling and
remembering); `alarm_id` lets a receiver notice. Nothing that a sink raises holds a secret: no address beyond its
host, no answer's text.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from servicectl.clock import SYSTEM, Clock
from servicectl.errors import ConfigError, PartyUnavailable
from servicectl.estate.alarms import Alarm

SIGNATURE_HEADER = "X-Servicectl-Signature"
TIMESTAMP_HEADER = "X-Servicectl-Timestamp"

REFUSED = "refused:"
"""How the error of an AlarmRefused begins."""

_ATTEMPTS = 3
_REFUSED_STATUS = {400, 413, 422}  # says something about this alarm, not about the address or the secret
_RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}


class AlarmRefused(ConfigError):
    """The sink is there, and will not have this one alarm."""


class Sink(Protocol):
    """`send` returns when the alarm was taken, and raises PartyUnavailable or ConfigError when it was not; AlarmRefused
    where only this alarm was not."""

    @property
    def name(self) -> str: ...

    def send(self, alarm: Alarm) -> None: ...


def as_json(alarm: Alarm) -> dict[str, Any]:
    """What a command reads and a webhook gets."""
    return {
        "alarm_id": alarm.alarm_id,
        "model_id": alarm.model_id,
        "feature": alarm.feature,
        "change": alarm.change,
        "verdict": alarm.verdict,
        "text": alarm.text,
        "job_id": alarm.job_id,
        "raised_at": alarm.raised_at.isoformat() + "Z",
    }


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """`sha256=` and the hex HMAC-SHA256 (RFC 2104) of "<timestamp>.<body>", so that an old call cannot be replayed."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class CommandSink:
    """A program started once per alarm: JSON on stdin, status 0 means taken. No shell is involved."""

    command: Sequence[str]
    timeout_s: float
    name: str = "command"

    def send(self, alarm: Alarm) -> None:
        program = self.command[0]
        try:
            ended = subprocess.run(
                list(self.command),
                input=json.dumps(as_json(alarm)).encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=self.timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PartyUnavailable(
                "the alarm command", f"{program} did not end within {self.timeout_s:g} s", cure="see alarms.timeout_s"
            ) from None
        except OSError as error:
            raise ConfigError(f"alarms.command: {program}: {error.strerror}", cure="correct alarms.command") from None
        if ended.returncode:
            raise PartyUnavailable("the alarm command", f"{program} ended with status {ended.returncode}")


@dataclass(frozen=True)
class WebhookSink:
    """An HTTP POST, retried for seconds; signed if there is a secret."""

    url: str
    secret: str | None
    timeout_s: float
    clock: Clock = SYSTEM
    name: str = "webhook"

    def send(self, alarm: Alarm) -> None:
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        address = urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError("alarms.webhook is no http(s) address", cure="write it as https://host/path")
        retrying = Retrying(
            retry=retry_if_exception_type(_TryAgainError),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.2, max=2.0),
            sleep=self.clock.sleep,
            reraise=True,
        )
        try:
            retrying(self._post, alarm, address.hostname)
        except _TryAgainError as refused:
            raise PartyUnavailable("the alarm webhook", str(refused)) from None

    def _post(self, alarm: Alarm, host: str) -> None:
        import http.client
        import urllib.error
        import urllib.request

        body = json.dumps(as_json(alarm), sort_keys=True).encode()
        timestamp = str(int(self.clock.now().timestamp()))
        headers = {"Content-Type": "application/json", TIMESTAMP_HEADER: timestamp, "User-Agent": "servicectl"}
        if self.secret:
            headers[SIGNATURE_HEADER] = signature(self.secret, timestamp, body)
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")  # noqa: S310 -- scheme checked
        # A redirect would send a signed body to a host that nobody configured.
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.HTTPHandler,
            urllib.request.HTTPSHandler,
            urllib.request.HTTPDefaultErrorHandler,
            urllib.request.HTTPErrorProcessor,
        ):
            opener.add_handler(handler())
        try:
            opener.open(request, timeout=self.timeout_s).close()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _RETRIED_STATUS:
                raise _TryAgainError(f"{host} answered {error.code}") from None
            if error.code in _REFUSED_STATUS:
                raise AlarmRefused(f"{REFUSED} the alarm webhook {host} answered {error.code}") from None
            raise ConfigError(
                f"the alarm webhook {host} answered {error.code}", cure="correct alarms.webhook or its secret"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgainError(f"{host}: {type(error).__name__}") from None


class _TryAgainError(Exception):
    pass


@dataclass(frozen=True)
class AppriseSink:
    """Every URL of one Apprise configuration; taken means taken by all of them."""

    urls: Sequence[str]
    name: str = "apprise"

    def send(self, alarm: Alarm) -> None:
        try:
            # By name: it is an extra, and the type checker need not have it.
            apprise: Any = importlib.import_module("apprise")
        except ImportError:
            raise ConfigError(
                "alarms go to Apprise, which is not installed", cure="pip install 'servicectl[apprise]'"
            ) from None
        told = apprise.Apprise()
        for number, url in enumerate(self.urls, 1):
            if not told.add(url):
                raise ConfigError(f"Apprise does not understand URL {number} of {len(self.urls)}", cure="correct it")
        if not told.notify(title=f"servicectl: {alarm.model_id} {alarm.verdict}", body=alarm.text):
            raise PartyUnavailable("Apprise", "not every service took the alarm")
