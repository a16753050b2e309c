"""A 500 MB model to Azurite by the artifact store, against a plain SDK upload of the same file with as many connections.

`upload_ratio` is our seconds by the SDK's, medians of interleaved rounds, digest and conditional commit included;
`peak_rss_mb` is the most memory that the uploading process held.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from bench._race import forked
from bench.publish_race import stores

LIMITS = {"upload_ratio": 1.5, "peak_rss_mb": 300.0}
_CONNECTIONS = 4


def run(quick: bool) -> dict[str, float]:
    """One file of 500 MB (quick: 50), three rounds (quick: one). Raises RuntimeError without Azurite."""
    size, rounds = (50 << 20, 1) if quick else (500 << 20, 3)
    with tempfile.TemporaryDirectory(prefix="servicectl-speed-") as scratch, stores(Path(scratch)) as there:
        if len(there) < 2:
            raise RuntimeError("Azurite is not installed: npm ci")
        url = there[1]()
        file = Path(scratch) / "model.pkl"
        with file.open("wb") as out:
            for _ in range(size >> 20):
                out.write(os.urandom(1 << 20))
        ours, theirs, peaks = [], [], []
        for number in range(rounds):
            seconds, peak = _measured(Path(scratch), partial(_ours, url, file, f"Model_X/ours-{number}.pkl"))
            ours.append(seconds)
            peaks.append(peak)
            plain, _ = _measured(Path(scratch), partial(_plain, url, file, f"Model_X/plain-{number}.pkl"))
            theirs.append(plain)
    return {"upload_ratio": round(median(ours) / median(theirs), 3), "peak_rss_mb": round(max(peaks), 1)}


def _measured(scratch: Path, upload: Callable[[], None]) -> tuple[float, float]:
    """Seconds of the upload and peak RSS in MB, in a process of its own."""
    told = scratch / "told"

    def work() -> None:
        from azure.storage import blob  # noqa: F401 -- importing is not uploading

        began = time.monotonic()
        upload()
        seconds = time.monotonic() - began
        told.write_text(f"{seconds} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}")

    told.unlink(missing_ok=True)
    os.waitpid(forked(work), 0)
    seconds, peak = told.read_text().split()
    return float(seconds), float(peak)


def _ours(url: str, file: Path, name: str) -> None:
    from servicectl.estate.artifacts import open_store

    open_store(url, os.environ["AZURE_STORAGE_CONNECTION_STRING"]).create(name, file, {})


def _plain(url: str, file: Path, name: str) -> None:
    from azure.storage.blob import BlobServiceClient

    connection = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
    with BlobServiceClient.from_connection_string(connection) as service, file.open("rb") as source:
        client = service.get_blob_client(url.removeprefix("azure://"), name)
        client.upload_blob(source, max_concurrency=_CONNECTIONS)
