"""The artifact store in an Azure Blob container.

A write stages blocks under ids of its own and makes them the blob by one conditional commit, with digest and metadata:
that commit is the swap. The condition, not a lease, fences; whoever loses asks what is there now. The SDK may send a
commit twice when its answer is lost, and the second then fails its condition: recognising our own digest covers that.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobBlock, BlobServiceClient, generate_blob_sas

from servicectl import crash
from servicectl.clock import SYSTEM
from servicectl.errors import BadAnswer, Busy, ConfigError, IntegrityError
from servicectl.estate.artifacts.azure_errors import code, explained, is_absence, is_condition
from servicectl.estate.artifacts.names import checked_name, checked_prefix, is_name
from servicectl.estate.artifacts.protocol import (
    CHUNK,
    READ_LIMIT,
    ArtifactStoreError,
    Blob,
    NoSuchBlob,
    PreconditionFailed,
    arriving,
    checked_metadata,
    chunks_of,
    same_or_refused,
    sha256_of_chunks,
    swapped_or_refused,
)
from servicectl.files import sha256_of

_PARALLEL = 4  # blocks under way at once, each of CHUNK bytes
_ATTEMPTS = 3  # of what another writer's commit can spoil
_SERVER_COPY_LIMIT = 256 << 20  # bytes; Copy Blob From URL takes no larger source
_SERVER_COPY_READ_TIMEOUT_S = 120.0
_SAS_LIFETIME = timedelta(minutes=30)
_BLOCK_ID_LENGTH = 32
_SHORTEST_BLOCK_ID = 8  # random characters; fewer would not keep two publishers' blocks apart
_PROBE = ".servicectl/probe"  # hidden: list() never shows it; it is never written
_NEVER_AN_ETAG = "servicectl-probe"
_SHA256 = re.compile(r"[0-9a-f]{64}")

_CLIENT_OPTIONS = {
    # An unreachable account fails in seconds (three attempts to connect), a silent one in half a minute (two answers).
    "connection_timeout": 4,
    "read_timeout": 15,
    "retry_total": 2,
    "retry_read": 1,
    "initial_backoff": 0.3,
    "increment_base": 1,
    "random_jitter_range": 0.2,
    "max_single_get_size": CHUNK,
    "max_chunk_get_size": CHUNK,
}
Content = TypeVar("Content")


def from_connection_string(connection_string: str, container: str) -> AzureStore:
    """A store by account key or shared access signature. Raises ConfigError for a malformed connection string."""
    malformed = ConfigError(
        "the Azure connection string is malformed",
        cure="copy it whole from the storage account into $AZURE_STORAGE_CONNECTION_STRING",
    )
    if "AccountKey=" not in connection_string and "SharedAccessSignature=" not in connection_string:
        raise malformed  # the SDK would go on without credentials
    try:
        service = BlobServiceClient.from_connection_string(connection_string.strip(), **_CLIENT_OPTIONS)
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
    return AzureStore(BlobServiceClient(account_url, credential=credential, **_CLIENT_OPTIONS), container, credential)


@dataclass(frozen=True)
class _Staged:
    blocks: list[BlobBlock]
    sha256: str
    size: int


class _Spoilt(Exception):
    """Another writer's commit dropped our staged blocks."""


class AzureStore:
    """An ArtifactStore in one container. `token_credential` is given where neither key nor signature is in use."""

    def __init__(self, service: BlobServiceClient, container: str, token_credential: Any = None) -> None:
        self._credential = service.credential
        self._container = service.get_container_client(container)
        self._container_name = container
        self._token_credential = token_credential

    def check(self) -> None:
        """As the protocol says. The writes are ones that must fail their condition: permission is asked before."""
        probe = self._container.get_blob_client(_PROBE)
        with self._explained("check"):
            next(iter(self._container.list_blobs(name_starts_with=f"{_PROBE}/", results_per_page=1)), None)
            _refused(probe.get_blob_properties)
            _refused(lambda: probe.commit_block_list([], **_condition(_NEVER_AN_ETAG)))
            _refused(lambda: probe.delete_blob(**_condition(_NEVER_AN_ETAG)))

    def stat(self, name: str) -> Blob | None:
        client = self._client(name)
        with self._explained(name):
            try:
                return _blob(name, client.get_blob_properties())
            except HttpResponseError as error:
                if is_absence(error):
                    return None
                raise

    def list(self, prefix: str) -> tuple[Blob, ...]:
        checked_prefix(prefix)
        with self._explained(prefix):
            found = self._container.list_blobs(name_starts_with=prefix, include=["metadata"])
            blobs = [_blob(item.name, item) for item in found if is_name(item.name) and not _is_folder(item)]
        return tuple(sorted(blobs, key=lambda blob: blob.name))

    def read(self, name: str) -> tuple[bytes, Blob]:
        client = self._client(name)

        def once() -> tuple[bytes, Blob]:
            stream = client.download_blob()
            if stream.size > READ_LIMIT:
                raise BadAnswer(f"{name} has {stream.size} bytes where at most {READ_LIMIT} are expected")
            content = bytes(stream.readall())
            return content, replace(_blob(name, stream.properties), size=len(content))

        return self._consistent(name, once, lambda content: hashlib.sha256(content).hexdigest())

    def download(self, name: str, to: Path) -> Blob:
        client = self._client(name)
        with arriving(to) as file:

            def once() -> tuple[Path, Blob]:
                file.seek(0)
                file.truncate()
                stream = client.download_blob(max_concurrency=_PARALLEL)
                size = stream.readinto(file)
                file.flush()
                return Path(file.name), replace(_blob(name, stream.properties), size=size)

            return self._consistent(name, once, sha256_of)[1]

    def create(self, name: str, source: Path | bytes, metadata: Mapping[str, str]) -> Blob:
        metadata = checked_metadata(metadata)
        if existing := self.stat(name):
            return same_or_refused(existing, self._sha256_of(existing), sha256_of_chunks(chunks_of(source)))
        return self._add(name, lambda: chunks_of(source), metadata)

    def replace(self, name: str, source: Path | bytes, metadata: Mapping[str, str], if_match: str | None) -> Blob:
        metadata = checked_metadata(metadata)
        if _etag_of(existing := self.stat(name)) != if_match:
            return swapped_or_refused(name, existing, sha256_of_chunks(chunks_of(source)), metadata)
        blob, our_sha256 = self._put(name, lambda: chunks_of(source), metadata, if_match)
        return blob or swapped_or_refused(name, self.stat(name), our_sha256, metadata)

    def copy(self, source: str, to: str, if_source_match: str) -> Blob:
        original = self.stat(source)
        if original is None:
            raise NoSuchBlob(source)
        if original.etag != if_source_match:
            raise PreconditionFailed(source, original)
        if existing := self.stat(to):
            return same_or_refused(existing, self._sha256_of(existing), self._sha256_of(original))
        if original.size <= _SERVER_COPY_LIMIT and (copied := self._copied_by_the_server(original, to)):
            return copied
        return self._add(to, lambda: self._content_of(original), dict(original.metadata))

    def delete(self, name: str, if_match: str) -> None:
        client = self._client(name)
        with self._explained(name):
            try:
                client.delete_blob(**_condition(if_match))
            except HttpResponseError as error:
                if is_condition(error):
                    if existing := self.stat(name):
                        raise PreconditionFailed(name, existing) from None
                elif not is_absence(error):
                    raise

    def sweep(self, prefix: str, before: datetime, *, dry_run: bool) -> tuple[str, ...]:  # noqa: ARG002 -- the protocol's
        checked_prefix(prefix)
        return ()

    # Reading

    def _client(self, name: str) -> Any:
        return self._container.get_blob_client(checked_name(name))

    def _consistent(
        self, name: str, once: Callable[[], tuple[Content, Blob]], digest: Callable[[Content], str]
    ) -> tuple[Content, Blob]:
        """A body with the description of its own version.

        Read again when the blob changed in between, or when the body does not have the digest that came with it
        (Azurite can send one version's headers with another's body); a body that stays so is damaged, and returned.
        """
        with self._explained(name):
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    content, blob = once()
                except HttpResponseError as error:
                    if is_absence(error):
                        raise NoSuchBlob(name) from None
                    if is_condition(error) and attempt < _ATTEMPTS:
                        continue
                    raise
                computed = digest(content)
                if blob.sha256 in (None, computed):
                    break
        return content, replace(blob, sha256=computed)

    def _content_of(self, blob: Blob) -> Iterator[bytes]:
        """The body of exactly this version, in order. Raises PreconditionFailed, IntegrityError."""
        digest = hashlib.sha256()
        client = self._client(blob.name)
        with self._explained(blob.name):
            try:
                for chunk in client.download_blob(**_condition(blob.etag)).chunks():
                    digest.update(chunk)
                    yield chunk
            except HttpResponseError as error:
                if is_condition(error) or is_absence(error):
                    raise PreconditionFailed(blob.name, self.stat(blob.name)) from None
                raise
        if blob.sha256 not in (None, digest.hexdigest()):
            raise IntegrityError(f"{blob.name} does not have the sha256 {blob.sha256} on record")

    def _sha256_of(self, blob: Blob) -> str:
        return blob.sha256 or sha256_of_chunks(self._content_of(blob))

    # Writing

    def _add(self, name: str, chunks: Callable[[], Iterable[bytes]], metadata: dict[str, str]) -> Blob:
        blob, our_sha256 = self._put(name, chunks, metadata, None)
        if blob:
            return blob
        existing = self.stat(name)
        if existing is None:
            raise PreconditionFailed(name, None)
        return same_or_refused(existing, self._sha256_of(existing), our_sha256)

    def _put(
        self, name: str, chunks: Callable[[], Iterable[bytes]], metadata: dict[str, str], if_match: str | None
    ) -> tuple[Blob | None, str]:
        """Upload, then commit under the condition: the new blob, None if the condition failed; and our digest."""
        client = self._client(name)
        for _ in range(_ATTEMPTS):
            with self._explained(name):
                staged = self._staged(client, name, chunks)
                try:
                    return self._committed(client, name, staged, metadata, if_match), staged.sha256
                except _Spoilt:
                    if _etag_of(self.stat(name)) != if_match:
                        return None, staged.sha256
        raise Busy(f"other writers of {name} keep dropping our blocks", cure="let one of them finish, then run again")

    def _committed(
        self, client: Any, name: str, staged: _Staged, metadata: dict[str, str], if_match: str | None
    ) -> Blob | None:
        recorded = metadata | {"sha256": staged.sha256}
        crash.point("artifacts/azure/before-commit")
        try:
            answer = client.commit_block_list(staged.blocks, metadata=recorded, **_condition(if_match))
        except HttpResponseError as error:
            if is_condition(error) or code(error) == "BlobAlreadyExists":
                return None
            if code(error) == "InvalidBlockList":
                raise _Spoilt from None
            raise
        crash.point("artifacts/azure/after-commit")
        return Blob(name, _bare(answer["etag"]), staged.size, staged.sha256, metadata, answer["last_modified"])

    def _staged(self, client: Any, name: str, chunks: Callable[[], Iterable[bytes]]) -> _Staged:
        """Blocks of all chunks under random ids: two publishers' ids must never meet, or one commits the other's bytes.

        All uncommitted block ids of a blob must have one length. Where another program died and left blocks with ids
        of another length, theirs is taken over; otherwise the name would be blocked until they expire after a week.
        """
        lengths = [_BLOCK_ID_LENGTH]
        for length in lengths:
            try:
                return _stage(client, chunks(), length)
            except HttpResponseError as error:
                if code(error) != "InvalidBlobOrBlock":
                    raise
                if len(lengths) == 1:
                    lengths += sorted({n for block in client.get_block_list("uncommitted")[1] for n in _lengths(block)})
        raise ArtifactStoreError(
            f"another program left unfinished blocks under {name} that ours cannot join",
            cure="they expire after a week; or finish that program's upload, or upload the present content again",
        )

    def _copied_by_the_server(self, original: Blob, to: str) -> Blob | None:
        """The copy; None if this account cannot copy from one of its own addresses (signature, firewall)."""
        options = {
            "requires_sync": True,  # an asynchronous copy would show an empty blob under its name meanwhile
            "source_etag": f'"{original.etag}"',
            "source_match_condition": MatchConditions.IfNotModified,
            "read_timeout": _SERVER_COPY_READ_TIMEOUT_S,
        }
        with self._explained(to):
            if self._token_credential is not None:
                token = self._token_credential.get_token("https://storage.azure.com/.default").token
                options["source_authorization"] = f"Bearer {token}"
            target = self._client(to)
            try:
                target.start_copy_from_url(self._readable_url(original.name), **_condition(None), **options)
            except HttpResponseError as error:
                if is_condition(error) and _etag_of(now := self.stat(original.name)) != original.etag:
                    raise PreconditionFailed(original.name, now) from None
                if code(error) == "CannotVerifyCopySource" or error.status_code == 501:
                    return None
                if not is_condition(error) and code(error) != "BlobAlreadyExists":
                    raise
                existing = self.stat(to)
                if existing is None:
                    return None
                return same_or_refused(existing, self._sha256_of(existing), self._sha256_of(original))
        return self.stat(to)

    def _readable_url(self, name: str) -> str:
        """The address under which Azure itself may read a blob of ours: signed, where we hold the account's key."""
        url = str(self._client(name).url)
        key = getattr(self._credential, "account_key", None)
        if not key:
            return url
        signature = generate_blob_sas(
            self._credential.account_name,
            self._container_name,
            name,
            account_key=key,
            permission="r",
            expiry=SYSTEM.now() + _SAS_LIFETIME,
        )
        return f"{url}?{signature}"

    def _explained(self, what: str) -> AbstractContextManager[None]:
        return explained(what, str(self._container.url))


def _stage(client: Any, chunks: Iterable[bytes], id_length: int) -> _Staged:
    digest, size, blocks = hashlib.sha256(), 0, []
    under_way: set[Future[Any]] = set()
    with ThreadPoolExecutor(_PARALLEL) as pool:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            if len(under_way) == _PARALLEL:
                _done(ended := wait(under_way, return_when=FIRST_COMPLETED).done)
                under_way -= ended
            blocks.append(BlobBlock(secrets.token_hex(_BLOCK_ID_LENGTH)[:id_length]))
            under_way.add(pool.submit(client.stage_block, blocks[-1].id, chunk, length=len(chunk)))
            crash.point("artifacts/azure/mid-upload")
        _done(under_way)
    return _Staged(blocks, digest.hexdigest(), size)


def _done(ended: Iterable[Future[Any]]) -> None:
    for future in ended:
        future.result()


def _lengths(block: BlobBlock) -> Iterator[int]:
    """The possible lengths of a foreign block's id: the SDK returns ids that are no text still in base64."""
    possible = [len(block.id.encode())]
    with suppress(binascii.Error):
        possible.append(len(base64.b64decode(block.id, validate=True)))
    yield from (length for length in possible if _SHORTEST_BLOCK_ID <= length <= 2 * _BLOCK_ID_LENGTH)


def _refused(call: Callable[[], object]) -> None:
    """Make a call that cannot succeed: its condition fails, or its blob is absent. Other errors pass."""
    try:
        call()
    except HttpResponseError as error:
        if not is_condition(error) and not is_absence(error):
            raise


def _condition(etag: str | None) -> dict[str, Any]:
    """Arguments for "still this etag", or for "no blob there" with None."""
    if etag is None:
        return {"match_condition": MatchConditions.IfMissing}
    return {"etag": f'"{etag}"', "match_condition": MatchConditions.IfNotModified}


def _is_folder(item: Any) -> bool:
    """Accounts with a hierarchical namespace list folders among the blobs."""
    return bool((item.metadata or {}).get("hdi_isfolder"))


def _etag_of(blob: Blob | None) -> str | None:
    return blob.etag if blob else None


def _bare(etag: str) -> str:
    """Listings give etags without quotes, answers with."""
    return etag.strip('"')


def _blob(name: str, properties: Any) -> Blob:
    metadata = {key.lower(): value for key, value in (properties.metadata or {}).items()}
    sha256 = metadata.pop("sha256", "")
    recorded = sha256 if _SHA256.fullmatch(sha256) else None
    modified = properties.last_modified.astimezone(UTC)
    return Blob(name, _bare(properties.etag), properties.size, recorded, metadata, modified)
