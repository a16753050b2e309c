"""Azurite, Azure's own emulator of Blob storage, on a free port and in memory only.

It is not durable and keeps nothing when it is killed; crash tests kill the client.
"""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from azure.core.exceptions import AzureError
from azure.storage.blob import BlobServiceClient

from tests.parts import ROOT, free_port, missing, program

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # public, documented
_PROGRAM = ROOT / "node_modules/azurite/dist/src/blob/main.js"
_START_S = 60


@dataclass(frozen=True)
class Azurite:
    port: int
    connection_string: str

    def service(self) -> BlobServiceClient:
        return BlobServiceClient.from_connection_string(self.connection_string)

    def container(self) -> str:
        """The name of a new, empty container."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        with self.service() as service:
            service.create_container(name)
        return name


def connection_string(port: int, key: str = KEY) -> str:
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={endpoint};"


@contextmanager
def azurite() -> Iterator[Azurite]:
    node = program("node")
    if not _PROGRAM.is_file():
        missing("azurite", "run `npm ci`")
    port = free_port()
    options = ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--inMemoryPersistence"]
    process = subprocess.Popen(
        [node, str(_PROGRAM), "--blobHost", "127.0.0.1", "--blobPort", str(port), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        server = Azurite(port, connection_string(port))
        _wait(server, process)
        yield server
    finally:
        process.kill()
        process.wait()


def _wait(server: Azurite, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + _START_S
    with BlobServiceClient.from_connection_string(server.connection_string, retry_total=0) as service:
        while True:
            with suppress(AzureError):
                service.get_service_properties()
                return
            if time.monotonic() > limit or process.poll() is not None:
                raise RuntimeError(f"Azurite did not start on port {server.port}")
            time.sleep(0.05)
