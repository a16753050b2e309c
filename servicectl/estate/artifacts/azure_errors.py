"""What Azure's refusals mean to an operator.

Messages name the account's host, the container and Azure's error code only: the SDK's own texts can hold signed URLs
and strings to sign.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceResponseError,
)

from servicectl.clock import SYSTEM
from servicectl.errors import Busy, ConfigError, ServicectlError
from servicectl.estate.artifacts.protocol import ArtifactStoreError, unavailable

_CONDITION_CODES = {"ConditionNotMet", "SourceConditionNotMet", "TargetConditionNotMet"}
_LATER_STATUS = {408, 429, 500, 502, 503, 504}
_LATER_CODES = {"ContainerBeingDeleted", "AccountBeingCreated"}
_TOLERATED_SKEW_S = 300.0  # the service itself tolerates 15 minutes
_BUSY_CODES = _CONDITION_CODES | {"LeaseIdMissing", "PendingCopyOperation"}


@contextmanager
def explained(what: str, container_url: str) -> Iterator[None]:
    """Turn the SDK's errors into ours. `what` was being done in that container."""
    try:
        yield
    except AzureError as error:
        raise _explanation(what, urlsplit(container_url), error) from None


def code(error: HttpResponseError) -> str:
    """Azure's own name for an error, "" if the answer had none."""
    found = getattr(error, "error_code", None)
    return str(getattr(found, "value", found) or "")


def is_condition(error: HttpResponseError) -> bool:
    """An If-Match or If-None-Match did not hold; never a foreign lease, which has the same status."""
    return error.status_code == 412 and code(error) in _CONDITION_CODES | {""}


def is_absence(error: HttpResponseError) -> bool:
    """The blob is not there; never a missing container, which has the same status."""
    return error.status_code == 404 and code(error) in ("BlobNotFound", "")


def _explanation(what: str, at: SplitResult, error: AzureError) -> ServicectlError:
    host = at.hostname
    if isinstance(error, ServiceRequestError):
        cure = "check the network and the account's address; running again carries on"
        return unavailable(f"no connection to {host}", cure=cure)
    if isinstance(error, ServiceResponseError | IncompleteReadError):
        return unavailable(f"{host} stopped answering at {what}", cure="running again carries on")
    if not isinstance(error, HttpResponseError):
        return ArtifactStoreError(f"the artifact store failed at {what}: {type(error).__name__}")
    told = f"{error.status_code} {code(error)}".strip()
    if isinstance(error, ClientAuthenticationError) or error.status_code in (401, 403):
        return _refusal(what, at, told, error)
    if code(error) == "ContainerNotFound":
        return ConfigError(
            f"the storage account at {host} has no container {at.path.rpartition('/')[2]}",
            cure="create it, or correct [artifacts] url",
        )
    if code(error) in _BUSY_CODES:
        return Busy(f"another writer holds {what} in the artifact store ({told})", cure="run again later")
    if error.status_code in _LATER_STATUS or code(error) in _LATER_CODES:
        wait_s = asked_to_wait_s(getattr(error, "response", None))
        asks = f" and asks us to come back after {wait_s:.0f} s" if wait_s else ""
        return unavailable(f"{host} answered {told} at {what}{asks}", cure="running again carries on")
    return ArtifactStoreError(f"the artifact store at {host} refused {what}: {told}")


def _refusal(what: str, at: SplitResult, told: str, error: AzureError) -> ConfigError:
    skew_s = _skew_s(error)
    if abs(skew_s) > _TOLERATED_SKEW_S:
        return ConfigError(
            f"{at.hostname} refuses us ({told}), and this machine's clock is {abs(skew_s) / 60:.0f} minutes "
            f"{'ahead of' if skew_s > 0 else 'behind'} its clock",
            cure="mend the clock (timedatectl, chrony); requests are signed with the time",
        )
    expiry = parse_qs(at.query).get("se", [""])[0]
    if expiry and _moment(expiry) < SYSTEM.now():
        return ConfigError(
            f"the shared access signature for {at.hostname} expired at {expiry}",
            cure="put a new one into $AZURE_STORAGE_CONNECTION_STRING",
        )
    return ConfigError(
        f"the storage account at {at.hostname} refuses our credentials for {what} ({told})",
        cure="check the connection string's key or signature, its permissions (read, add, create, write, delete, list), "
        "the account's firewall, and this machine's clock",
    )


def asked_to_wait_s(response: Any) -> float:
    """The seconds that an answer's Retry-After asks for (RFC 9110: a number, or a moment); 0 if it asks for none."""
    told = str((getattr(response, "headers", None) or {}).get("Retry-After") or "")
    if told.isdecimal():
        return float(told)
    with suppress(TypeError, ValueError):
        return max(0.0, (parsedate_to_datetime(told) - SYSTEM.now()).total_seconds())
    return 0.0


def _skew_s(error: AzureError) -> float:
    """How far our clock is ahead of the one that answered, in seconds; 0 if the answer does not tell."""
    told = getattr(getattr(error, "response", None), "headers", {}).get("Date")
    try:
        return (SYSTEM.now() - parsedate_to_datetime(told)).total_seconds() if told else 0.0
    except (TypeError, ValueError):
        return 0.0


def _moment(text: str) -> datetime:
    """A signature's expiry, in UTC; a date stands for its beginning."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
