"""The two places that blobs can be in, as servicectl and as other programs see them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servicectl.estate.artifacts import open_store
from servicectl.estate.artifacts.protocol import ArtifactStore
from tests.parts import ROOT
from tests.parts.azurite import Azurite

_CLIENT = """
import json, os, sys
from servicectl.estate.artifacts import open_store
method, arguments = json.loads(sys.argv[1])
arguments["source"] = arguments["source"].encode()
store = open_store(os.environ["TEST_URL"], os.environ.get("TEST_CONNECTION_STRING") or None)
print(getattr(store, method)(**arguments).etag)
"""


class Place(ABC):
    """An empty place for blobs."""

    url: str
    connection_string: str | None = None
    crash_points: Mapping[str, tuple[str, str, str]]  # in order; only after the last is the new blob there

    @abstractmethod
    def put(self, name: str, content: bytes) -> None:
        """Write a blob as a program does that knows nothing of servicectl."""

    @abstractmethod
    def everything(self) -> set[str]:
        """The names of all files or blobs, hidden ones too."""

    @property
    def store(self) -> ArtifactStore:
        return open_store(self.url, self.connection_string)

    def run(self, method: str, *, crash_at: str = "", **arguments: Any) -> subprocess.CompletedProcess[str]:
        """Call one method of the store in a process of its own, which may die at a named point."""
        added = {
            "TEST_URL": self.url,
            "TEST_CONNECTION_STRING": self.connection_string or "",
            "SERVICECTL_CRASH_AT": crash_at,
        }
        command = [sys.executable, "-c", _CLIENT, json.dumps([method, arguments])]
        return subprocess.run(command, env=os.environ | added, cwd=ROOT, capture_output=True, text=True)


class Folder(Place):
    crash_points: Mapping[str, tuple[str, str, str]] = {
        "create": ("artifacts/local/mid-write", "artifacts/local/before-link", "artifacts/local/after-link"),
        "replace": ("artifacts/local/mid-write", "artifacts/local/before-rename", "artifacts/local/after-rename"),
    }

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{root}"

    def put(self, name: str, content: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def everything(self) -> set[str]:
        return {path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()}


class Container(Place):
    crash_points = dict.fromkeys(
        ("create", "replace"),
        ("artifacts/azure/mid-upload", "artifacts/azure/before-commit", "artifacts/azure/after-commit"),
    )

    def __init__(self, server: Azurite) -> None:
        self.server = server
        self.name = server.container()
        self.url = f"azure://{self.name}"
        self.connection_string = server.connection_string

    def put(self, name: str, content: bytes) -> None:
        with self.server.service() as service:
            service.get_blob_client(self.name, name).upload_blob(content, overwrite=True)

    def everything(self) -> set[str]:
        with self.server.service() as service:
            return {blob.name for blob in service.get_container_client(self.name).list_blobs()}
