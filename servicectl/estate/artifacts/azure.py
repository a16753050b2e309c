"""The artifact store in an Azure Blob container.

A write stages blocks under ids of its own and makes them the blob by one conditional commit, with digest and metadata:
that commit is the swap. The condition, not a lease, fences; whoever loses asks what is there now. The SDK may send a
commit twice when its answer is lost, and the second then fails its condition: recognising our own digest covers that.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobServiceClient, generate_blob_sas

from servicectl import crash
from servicectl.clock import SYSTEM
from servicectl.errors import BadAnswer, Busy, IntegrityError
from servicectl.estate.artifacts.azure_blocks import PARALLEL, Staged, staged
from servicectl.estate.artifacts.azure_errors import code, explained, is_absence, is_condition
from servicectl.estate.artifacts.names import checked_name, checked_prefix, is_name
from servicectl.estate.artifacts.protocol import (
    READ_LIMIT,
    Blob,
    NoSuchBlob,
    PreconditionFailed,
    arriving,
    checked_metadata,
    chunks_of,
    expected_or_refused,
    same_or_refused,
    sha256_of_chunks,
    swapped_or_refused,
)
from servicectl.files import sha256_of

_ATTEMPTS = 3  # of what another writer's commit can spoil
_SERVER_COPY_LIMIT = 256 << 20  # bytes; Copy Blob From URL takes no larger source
_SERVER_COPY_READ_TIMEOUT_S = 120.0
_SAS_LIFETIME = timedelta(minutes=30)
_PROBE = ".servicectl/probe"  # hidden: list() never shows it; it is never written
_NEVER_AN_ETAG = "servicectl-probe"
_SHA256 = re.compile(r"[0-9a-f]{64}")

Content = TypeVar("Content")


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
                stream = client.download_blob(max_concurrency=PARALLEL)
                size = stream.readinto(file)
                file.flush()
                return Path(file.name), replace(_blob(name, stream.properties), size=size)

            return self._consistent(name, once, sha256_of)[1]

    def create(
        self, name: str, source: Path | bytes, metadata: Mapping[str, str], *, sha256: str | None = None
    ) -> Blob:
        metadata = checked_metadata(metadata)
        if existing := self.stat(name):
            ours = expected_or_refused(name, sha256_of_chunks(chunks_of(source)), sha256)
            return same_or_refused(existing, self._sha256_of(existing), ours)
        return self._add(name, lambda: chunks_of(source), metadata, sha256)

    def replace(
        self,
        name: str,
        source: Path | bytes,
        metadata: Mapping[str, str],
        if_match: str | None,
        *,
        sha256: str | None = None,
    ) -> Blob:
        metadata = checked_metadata(metadata)
        if _etag_of(existing := self.stat(name)) != if_match:
            ours = expected_or_refused(name, sha256_of_chunks(chunks_of(source)), sha256)
            return swapped_or_refused(name, existing, ours, metadata)
        blob, ours = self._put(name, lambda: chunks_of(source), metadata, if_match, sha256)
        return blob or swapped_or_refused(name, self.stat(name), ours, metadata)

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
        return self._add(to, lambda: self._content_of(original), dict(original.metadata), original.sha256)

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

    def _add(
        self, name: str, chunks: Callable[[], Iterable[bytes]], metadata: dict[str, str], expected: str | None
    ) -> Blob:
        blob, our_sha256 = self._put(name, chunks, metadata, None, expected)
        if blob:
            return blob
        existing = self.stat(name)
        if existing is None:
            raise PreconditionFailed(name, None)
        return same_or_refused(existing, self._sha256_of(existing), our_sha256)

    def _put(
        self,
        name: str,
        chunks: Callable[[], Iterable[bytes]],
        metadata: dict[str, str],
        if_match: str | None,
        expected: str | None,
    ) -> tuple[Blob | None, str]:
        """Upload, then commit under the condition: the new blob, None if the condition failed; and our digest."""
        client = self._client(name)
        for _ in range(_ATTEMPTS):
            with self._explained(name):
                sent = staged(client, name, chunks)
                expected_or_refused(name, sent.sha256, expected)
                try:
                    return self._committed(client, name, sent, metadata, if_match), sent.sha256
                except _Spoilt:
                    if _etag_of(self.stat(name)) != if_match:
                        return None, sent.sha256
        raise Busy(f"other writers of {name} keep dropping our blocks", cure="let one of them finish, then run again")

    def _committed(
        self, client: Any, name: str, sent: Staged, metadata: dict[str, str], if_match: str | None
    ) -> Blob | None:
        recorded = metadata | {"sha256": sent.sha256}
        crash.point("artifacts/azure/before-commit")
        try:
            answer = client.commit_block_list(sent.blocks, metadata=recorded, **_condition(if_match))
        except HttpResponseError as error:
            if is_condition(error) or code(error) == "BlobAlreadyExists":
                return None
            if code(error) == "InvalidBlockList":
                raise _Spoilt from None
            raise
        crash.point("artifacts/azure/after-commit")
        return Blob(name, _bare(answer["etag"]), sent.size, sent.sha256, metadata, answer["last_modified"])

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
