"""A 500 MB model to Azurite: our upload against a plain SDK upload of the same file, and the memory of a whole publish.

`upload_ratio` is our seconds by the SDK's with as many connections, medians of interleaved rounds, digest and conditional
commit included. `peak_rss_mb` is the most memory that a process holds that publishes it, from the checks over upload,
read-back, archive and swap to the pointer. After that Redis is given the model, which takes it whole and once:
serving.max_mb bounds that.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from bench._race import MODEL, Track, forked, packaged
from bench.publish_race import stores

LIMITS = {"upload_ratio": 1.5, "peak_rss_mb": 300.0}
_CONNECTIONS = 4


def run(quick: bool) -> dict[str, float]:
    """One file of 500 MB (quick: 50), three rounds (quick: one). Raises RuntimeError without Azurite."""
    size, rounds = (50 << 20, 1) if quick else (500 << 20, 3)
    with tempfile.TemporaryDirectory(prefix="servicectl-speed-") as scratch, stores(Path(scratch), large=True) as there:
        if len(there) < 2:
            raise RuntimeError("Azurite is not installed: npm ci")
        url = there[1]()
        file = Path(scratch) / "model.pkl"
        _write_pickle(file, size)
        ours, theirs, peaks = [], [], []
        for number in range(rounds):
            seconds, peak = _measured(Path(scratch), partial(_ours, url, file, f"Model_X/ours-{number}.pkl"))
            ours.append(seconds)
            peaks.append(peak)
            plain, _ = _measured(Path(scratch), partial(_plain, url, file, f"Model_X/plain-{number}.pkl"))
            theirs.append(plain)
        peaks.append(_peak_of_a_publish(Path(scratch), url, file))
    return {"upload_ratio": round(median(ours) / median(theirs), 3), "peak_rss_mb": round(max(peaks), 1)}


def _write_pickle(file: Path, size: int) -> None:
    """A pickle of that many bytes, without ever holding them."""
    with file.open("wb") as out:
        out.write(b"\x80\x04\x8e" + struct.pack("<Q", size))
        for _ in range(size >> 20):
            out.write(os.urandom(1 << 20))
        out.write(b".")


def _peak_of_a_publish(scratch: Path, url: str, file: Path) -> float:
    """Two publishes, so that the second one has an incumbent; the peak RSS of the second's process in MB."""
    from servicectl.miniature.estate import MiniatureEstate

    with MiniatureEstate(scratch / "estate") as estate:
        track = Track(scratch / "track", estate.redis_url, url)
        for folder in (track.candidates, track.folder / "made"):
            folder.mkdir(parents=True)
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        model = {"path": str(file), "sha256": digest, "bytes": file.stat().st_size}
        os.waitpid(forked(partial(_publish, track)), 0)
        _, status, used = os.wait4(forked(partial(_publish_until_the_pointer, track, packaged(track, model))), 0)
    if os.waitstatus_to_exitcode(status) != -9:
        raise RuntimeError("the publish did not come to its pointer")
    return used.ru_maxrss / 1e3


def _publish(track: Track) -> None:
    from bench._race import publish_once

    publish_once(track, track.world("here"))


def _publish_until_the_pointer(track: Track, candidate: dict[str, object]) -> None:
    from servicectl.actions.kinds import PUBLISH, serving_scope
    from servicectl.actions.retrain import publish_spec
    from servicectl.jobs.model import NewJob

    os.environ["SERVICECTL_CRASH_AT"] = "publish/point/effect"
    job = NewJob(PUBLISH, serving_scope(MODEL), publish_spec(MODEL, "none", 1, candidate))
    runner = track.world("here").runner
    runner.run(runner.submit(job).job.job_id)


def _measured(scratch: Path, upload: Callable[[], None]) -> tuple[float, float]:
    """Seconds of the upload and peak RSS in MB, in a process of its own."""
    told = scratch / "told"

    def work() -> None:
        from azure.storage import blob  # noqa: F401 -- importing is not uploading

        began = time.monotonic()
        upload()
        told.write_text(str(time.monotonic() - began))

    told.unlink(missing_ok=True)
    used = os.wait4(forked(work), 0)[2]
    return float(told.read_text()), used.ru_maxrss / 1e3


def _ours(url: str, file: Path, name: str) -> None:
    from servicectl.estate.artifacts import open_store

    open_store(url, os.environ["AZURE_STORAGE_CONNECTION_STRING"]).create(name, file, {})


def _plain(url: str, file: Path, name: str) -> None:
    from azure.storage.blob import BlobServiceClient

    connection = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
    with BlobServiceClient.from_connection_string(connection) as service, file.open("rb") as source:
        client = service.get_blob_client(url.removeprefix("azure://"), name)
        client.upload_blob(source, max_concurrency=_CONNECTIONS)
