"""Where a worker's artifacts lie: a folder, or a container of its own in an Azure account."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from servicectl.errors import ConfigError, UsageError
from servicectl.estate.artifacts import open_store
from servicectl.estate.artifacts.protocol import ArtifactStore, Blob

_ARTIFACTS = "artifacts"
_METADATA = "metadata.json"


class Place(Protocol):
    """One worker's artifact store, that can be saved into a folder and become what was saved in one."""

    @property
    def url(self) -> str: ...

    @property
    def connection_string(self) -> str | None: ...

    def store(self) -> ArtifactStore: ...

    def blobs(self) -> tuple[Blob, ...]: ...

    def save(self, folder: Path) -> None: ...

    def restore(self, source: Path | None) -> None: ...

    def put(self, name: str, content: bytes) -> None:
        """A blob as others write it, with no record of ours."""


@dataclass(frozen=True)
class FolderPlace:
    root: Path

    connection_string: None = None

    @property
    def url(self) -> str:
        return f"file://{self.root}"

    def store(self) -> ArtifactStore:
        return open_store(self.url, None)

    def blobs(self) -> tuple[Blob, ...]:
        folders = sorted(path.name for path in self.root.glob("Model_*"))
        store = self.store()
        return tuple(blob for folder in folders for blob in store.list(f"{folder}/"))

    def save(self, folder: Path) -> None:
        if self.root.exists():
            shutil.copytree(self.root, folder / _ARTIFACTS, dirs_exist_ok=True)

    def restore(self, source: Path | None) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        if source is not None and (source / _ARTIFACTS).exists():
            shutil.copytree(source / _ARTIFACTS, self.root)  # with times: they are part of the store's records

    def put(self, name: str, content: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@dataclass(frozen=True)
class ContainerPlace:
    container: str
    connection_string: str

    @property
    def url(self) -> str:
        return f"azure://{self.container}"

    def store(self) -> ArtifactStore:
        return open_store(self.url, self.connection_string)

    def blobs(self) -> tuple[Blob, ...]:
        with _service(self.connection_string) as service:
            found = service.get_container_client(self.container).list_blob_names()
            folders = sorted({name.partition("/")[0] for name in found})
        store = self.store()
        return tuple(blob for folder in folders for blob in store.list(f"{folder}/"))

    def save(self, folder: Path) -> None:
        store, kept = self.store(), {}
        for blob in self.blobs():
            path = folder / _ARTIFACTS / blob.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.read(blob.name)[0])
            kept[blob.name] = None if blob.sha256 is None else dict(blob.metadata)
        (folder / _METADATA).write_text(json.dumps(kept))

    def restore(self, source: Path | None) -> None:
        store = self.store()
        for blob in self.blobs():
            store.delete(blob.name, blob.etag)
        kept = json.loads((source / _METADATA).read_text()) if source is not None else {}
        for name, metadata in kept.items():
            assert source is not None
            content = (source / _ARTIFACTS / name).read_bytes()
            if metadata is None:
                self.put(name, content)
            else:
                store.create(name, content, metadata)

    def put(self, name: str, content: bytes) -> None:
        with _service(self.connection_string) as service:
            service.get_blob_client(self.container, name).upload_blob(content, overwrite=True)


@contextmanager
def places(url: str | None, connection_string: str | None, folder: Path, workers: int) -> Iterator[list[Place]]:
    """A place for each worker: below `folder`, or containers NAME-1, NAME-2 ... of `azure://NAME`, made and removed here.

    Raises UsageError for another kind of address or containers that exist, ConfigError without credentials.
    """
    if url is None:
        yield [FolderPlace(folder / f"worker-{number}" / _ARTIFACTS) for number in range(1, workers + 1)]
        return
    scheme, _, name = url.partition("://")
    if scheme != "azure" or not name:
        raise UsageError(
            f"--artifacts {url}: not an Azure container", cure="write azure://NAME, or leave it out for folders"
        )
    if not connection_string:
        raise ConfigError(
            f"no credentials for {url}",
            cure="set $AZURE_STORAGE_CONNECTION_STRING with an account key: containers are made and removed",
        )
    with _containers(connection_string, [f"{name}-{number}" for number in range(1, workers + 1)]) as made:
        yield [ContainerPlace(container, connection_string) for container in made]


@contextmanager
def _containers(connection_string: str, wanted: list[str]) -> Iterator[list[str]]:
    from azure.core.exceptions import ResourceExistsError

    made: list[str] = []
    with _service(connection_string) as service:
        try:
            for name in wanted:
                try:
                    service.create_container(name)
                except ResourceExistsError:
                    raise UsageError(
                        f"the container {name} exists already", cure="name another: --artifacts azure://NAME"
                    ) from None
                made.append(name)
            yield made
        finally:
            for name in made:
                service.delete_container(name)


@contextmanager
def _service(connection_string: str) -> Iterator[Any]:
    from azure.storage.blob import BlobServiceClient

    with BlobServiceClient.from_connection_string(connection_string) as service:
        yield service
