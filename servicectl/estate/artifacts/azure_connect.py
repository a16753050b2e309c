"""The way to an Azure container: credentials, and how patiently one request is repeated."""

from __future__ import annotations

from typing import Any

from azure.storage.blob import BlobServiceClient, ExponentialRetry

from servicectl.errors import ConfigError
from servicectl.estate.artifacts.azure import AzureStore
from servicectl.estate.artifacts.azure_errors import asked_to_wait_s
from servicectl.estate.artifacts.protocol import CHUNK

_LONGEST_WAIT_S = 10.0  # an account that asks for more is told as not available: the job waits, not the process


class _Retries(ExponentialRetry):  # type: ignore[misc]  # the SDK ships it without types
    """The SDK's repetition, and its waits at least as long as the account's Retry-After, which the SDK does not heed."""

    def increment(self, settings: Any, request: Any, response: Any = None, error: Any = None) -> bool:
        goes_on = bool(super().increment(settings, request, response, error))
        return goes_on and asked_to_wait_s(response) <= _LONGEST_WAIT_S

    def get_backoff_time(self, settings: Any) -> float:
        last = settings["history"][-1].http_response if settings["history"] else None
        return float(max(super().get_backoff_time(settings), asked_to_wait_s(last)))


# An unreachable account fails in seconds (three attempts to connect), a silent one in half a minute (two answers).
_RETRIES: dict[str, Any] = {
    "retry_total": 2,
    "retry_read": 1,
    "initial_backoff": 0.3,
    "increment_base": 1,
    "random_jitter_range": 0.2,
}


def _client_options() -> dict[str, Any]:
    return {
        "connection_timeout": 4,
        "read_timeout": 15,
        "retry_policy": _Retries(**_RETRIES),
        "max_single_get_size": CHUNK,
        "max_chunk_get_size": CHUNK,
    }


def from_connection_string(connection_string: str, container: str) -> AzureStore:
    """A store by account key or shared access signature. Raises ConfigError for a malformed connection string."""
    malformed = ConfigError(
        "the Azure connection string is malformed",
        cure="copy it whole from the storage account into $AZURE_STORAGE_CONNECTION_STRING",
    )
    if "AccountKey=" not in connection_string and "SharedAccessSignature=" not in connection_string:
        raise malformed  # the SDK would go on without credentials
    try:
        service = BlobServiceClient.from_connection_string(connection_string.strip(), **_client_options())
    except (ValueError, KeyError):
        raise malformed from None
    return AzureStore(service, container)


def from_default_credential(account_url: str | None, container: str) -> AzureStore:
    """A store by Azure's default credential chain. Raises ConfigError without an account or azure-identity."""
    advice = "set $AZURE_STORAGE_CONNECTION_STRING, or [artifacts] connection_string_file"
    if not account_url:
        raise ConfigError(
            f"no credentials for the Azure container {container}",
            cure=f"{advice}, or $AZURE_STORAGE_ACCOUNT_URL for Azure's default credential chain",
        )
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError:
        raise ConfigError(
            f"the Azure container {container} needs the package azure-identity for Azure's default credential chain",
            cure=f"pip install 'servicectl[azure-identity]'; or {advice}",
        ) from None
    credential = DefaultAzureCredential()
    return AzureStore(BlobServiceClient(account_url, credential=credential, **_client_options()), container, credential)
