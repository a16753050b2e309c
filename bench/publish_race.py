"""Publishers of one model, killed at random, with a reader that never rests: 0 moments without a whole, right model.

Two and then five publishers, each an installation of its own (own job store, so that no lock of ours keeps them apart),
against a local folder and against Azurite; registry (the miniature handler) and Redis are real processes. `publishes` counts
generations, `kills` SIGKILLs of publishers, `reads` the reader's looks. `violations`: no pointer, a wrong or cut body, a
generation that fell, a lost archive, a version given twice, stores that do not converge, a publish that ended otherwise than
published or superseded. `naive_violations` is what the same reader sees of copy, delete, upload under the same kills, for
a tenth of the time.

The races last 5 minutes together, and on a busy machine up to 9, until the least figures are reached.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench._race import (
    MODEL,
    Track,
    converged,
    forked,
    modules_of_a_publish,
    naive_publisher,
    naive_reader,
    publish_once,
    publisher,
    reader,
    wait_for,
)
from servicectl.miniature.estate import MiniatureEstate

LIMITS = {"violations": 0.0}
MINIMUM = {"publishes": 500.0, "kills": 300.0, "naive_violations": 1.0}

_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # public, documented
_AZURITE = Path(__file__).resolve().parents[1] / "node_modules/azurite/dist/src/blob/main.js"
_LIVES = 6.0  # how long a publisher lives at most before it is killed, in publishes of this machine as it is now
_SHORTEST_LIFE_S = 0.01
_SECONDS = {False: 300.0, True: 20.0}  # of all races together
_TOLD_EVERY_S = 10.0
_LONGEST = {False: 1.8, True: 1.0}  # times as long at most, where a busy machine has not come to MINIMUM by then


def add_arguments(options: Any) -> None:
    options.add_argument("--seconds", type=float, help="all races together last so long, whatever they come to")


def run(quick: bool, seconds: float | None = None) -> dict[str, float]:
    """Figures of all races together. A violation is told on stderr."""
    total: dict[str, float] = dict.fromkeys(("publishes", "kills", "reads", "violations", "naive_violations"), 0.0)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="servicectl-race-", dir=memory if memory.is_dir() else None) as scratch:
        estate = MiniatureEstate(Path(scratch) / "estate", batch_seconds=1.0)
        estate.folder.mkdir()
        with estate, stores(Path(scratch)) as places:
            races = [(publishers, store) for publishers in (2, 5) for store in places]
            shortest = (seconds or _SECONDS[quick]) / len(races)
            longest = shortest if seconds else shortest * _LONGEST[quick]
            for store in places:
                track = _track(Path(scratch), estate.redis_url, store())
                for name in modules_of_a_publish(track):
                    with suppress(ImportError):
                        importlib.import_module(name)
                _forget(track)
            enough = {name: least / len(races) for name, least in MINIMUM.items()}
            for publishers, store in races:
                track = _track(Path(scratch), estate.redis_url, store())
                figures = _race(track, publishers, shortest, longest, enough)
                _forget(track)
                naive = _naive(_track(Path(scratch), estate.redis_url, store()), publishers, max(2.0, shortest / 10))
                for name, value in (figures | {"naive_violations": naive}).items():
                    total[name] += value
                _tell(f"{publishers} publishers, {track.url}: {figures}, naive {naive:g}")
    return total


def _race(track: Track, publishers: int, seconds: float, longest: float, enough: dict[str, float]) -> dict[str, float]:
    one_publish = _seconds_of_a_publish(track) * max(1.0, publishers / (os.cpu_count() or 1))
    report = track.folder / "report"
    installations = [f"installation-{number}" for number in range(publishers)]
    reading = forked(lambda: reader(track, report))

    def start(name: str) -> int:
        return forked(lambda: publisher(track, name))

    told_until = 0.0

    def is_over(elapsed: float, kills: int) -> bool:
        nonlocal told_until
        publishes = _newest(report)
        if elapsed > told_until:
            told_until = elapsed + _TOLD_EVERY_S
            _tell(f"{publishers} publishers, {track.url}: {elapsed:3.0f} s, {publishes} publishes, {kills} kills")
        reached = kills >= enough["kills"] and publishes >= enough["publishes"]
        return elapsed > (seconds if reached else longest)

    # Long enough to publish once or twice, and short enough for the kills.
    as_asked = 2 * publishers * seconds / (1.5 * enough["kills"])
    longest_life = min(_LIVES * one_publish, max(2 * one_publish, as_asked))
    kills = _storm(dict.fromkeys(installations, start), is_over, longest_life)
    at_the_end = track.folder / "converged"

    def examine() -> None:
        at_the_end.write_text(json.dumps(converged(track, installations)))

    _, status = os.waitpid(forked(examine), 0)
    _end(reading)
    seen = _report(report)
    failed, outcomes = json.loads(at_the_end.read_text()) if status == 0 else (["the end could not be examined"], {})
    _tell(f"{publishers} publishers, {track.url}: publishes of those that were not killed for good ended {outcomes}")
    broken = [text for one in seen for text in one["violations"]] + failed
    for text in broken[:20]:
        _tell(f"violation: {text}")
    generations = [one["generation"] for one in seen if one["generation"] is not None]
    return {
        "publishes": float(max(generations, default=0)),
        "kills": float(kills),
        "reads": float(len(seen)),
        "violations": float(len(broken)),
    }


def _naive(track: Track, publishers: int, seconds: float) -> float:
    report = track.folder / "report"
    reading = forked(lambda: naive_reader(track, report))

    def start(_name: str) -> int:
        return forked(lambda: naive_publisher(track))

    _storm({str(number): start for number in range(publishers)}, lambda elapsed, _: elapsed > seconds, 1.8)
    _end(reading)
    return float(sum(1 for one in _report(report) if one["violations"]))


def _storm(starts: dict[str, Callable[[str], int]], is_over: Callable[[float, int], bool], longest_life: float) -> int:
    """Run one process per name, kill each at random and start it again, until it is over; the number of kills."""
    began, kills = time.monotonic(), 0

    def life() -> float:
        return time.monotonic() + random.uniform(_SHORTEST_LIFE_S, longest_life)

    alive = {name: (start(name), life()) for name, start in starts.items()}
    while not is_over(time.monotonic() - began, kills):
        for name, (pid, until) in alive.items():
            ended, _ = os.waitpid(pid, os.WNOHANG)
            if not ended and time.monotonic() >= until:
                _end(pid)
                kills += 1
                ended = pid
            if ended:
                alive[name] = (starts[name](name), life())
        time.sleep(0.02)
    for pid, _ in alive.values():
        _end(pid)
    return kills


def _seconds_of_a_publish(track: Track) -> float:
    """A first publish by an installation that takes no further part, from its process's start to its end."""
    began = time.monotonic()
    os.waitpid(forked(lambda: publish_once(track, track.world("first"))), 0)
    return time.monotonic() - began


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _newest(report: Path) -> int:
    """The last generation that the reader saw."""
    if not report.exists():
        return 0
    with report.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 400))
        lines = file.read().splitlines()[1:-1]
    return next((json.loads(line)["generation"] or 0 for line in reversed(lines) if line.endswith(b"}")), 0)


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _report(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _track(scratch: Path, redis_url: str, url: str) -> Track:
    folder = scratch / uuid.uuid4().hex[:8]
    for name in ("candidates", "made"):
        (folder / name).mkdir(parents=True)
    return Track(folder, redis_url, url)


def _forget(track: Track) -> None:
    """Make room for the next race: registry rows, Redis keys and files of this one."""

    def forget() -> None:
        world = track.world("reader")
        for table in ("model_metadata", "model_baselines"):
            world.queue.run(f"DELETE FROM {table} WHERE model_id = '{MODEL}'")
        world.keys.withdraw([MODEL])

    os.waitpid(forked(forget), 0)
    shutil.rmtree(track.folder)


@contextmanager
def stores(scratch: Path, *, large: bool = False) -> Iterator[list[Callable[[], str]]]:
    """One function per store that is to be had; each call gives a new, empty one. `large`: Azurite keeps blobs on disk."""

    def local() -> str:
        return f"file://{scratch}/artifacts-{uuid.uuid4().hex[:8]}"

    node = shutil.which("node")
    if node is None or not _AZURITE.is_file():
        print("Azurite is not installed (npm ci): the local store only", file=sys.stderr)
        yield [local]
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    where = ["--location", str(scratch / "azurite")] if large else ["--inMemoryPersistence"]
    quiet = ["--silent", "--disableTelemetry", "--skipApiVersionCheck", *where]
    server = subprocess.Popen(
        [node, str(_AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port), *quiet], stdout=subprocess.DEVNULL
    )
    endpoint = f"http://127.0.0.1:{port}/devstoreaccount1"
    connection = (
        f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={_KEY};BlobEndpoint={endpoint};"
    )
    os.environ["AZURE_STORAGE_CONNECTION_STRING"] = connection

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def container() -> str:
        name = f"race-{uuid.uuid4().hex[:8]}"

        def create() -> None:
            from azure.storage.blob import BlobServiceClient

            with BlobServiceClient.from_connection_string(connection) as service:
                service.create_container(name)

        os.waitpid(forked(create), 0)
        return f"azure://{name}"

    try:
        if not wait_for(answers, 30):
            raise RuntimeError("Azurite did not start")
        yield [local, container]
    finally:
        server.terminate()
        server.wait()
