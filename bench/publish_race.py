"""Publishers of one model, killed at random, with a reader that never rests: 0 moments without a whole, right model.

Two and then five publishers, each an installation of its own (own job store, so that no lock of ours keeps them apart),
against a local folder and against Azurite; beside them sync-production on a further machine; registry (the miniature
handler) and Redis are real processes. `publishes` counts generations, `kills` SIGKILLs of publishers (about two for three
publishes), `reads` the reader's looks. `violations`: no pointer, a wrong or cut body, a generation that fell, a lost archive,
a version given twice, something that sync-production cannot verify, stores that do not converge, a publish that ended
otherwise than published or superseded. `overtaken` counts looks at a production body of a publish that lost and that nobody
had mended yet; one that stays so for 15 s is a violation. `naive_violations` is what the very same reader sees of copy,
delete, upload under kills, for a tenth of the time: at least one, or the reader is blind.

The races last five and a half minutes together, and on a busy machine up to ten, until the least figures are reached;
five publishers get three quarters of that. The exit status is 1 if there is a violation.
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
    publish_once,
    publisher,
    reader,
    syncer,
    wait_for,
)
from servicectl.miniature.estate import MiniatureEstate

LIMITS = {"violations": 0.0}
MINIMUM = {"publishes": 500.0, "kills": 300.0, "naive_violations": 1.0}

_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # public, documented
_AZURITE = Path(__file__).resolve().parents[1] / "node_modules/azurite/dist/src/blob/main.js"
_KILLS_PER_PUBLISH = 0.65
_PATIENCE_S = 5.0  # without a publish, and one is killed all the same
_SHARES = {2: 0.25, 5: 0.75}  # of the time: more publishers meet more often
_SECONDS = {False: 330.0, True: 20.0}  # of all races together
_NAIVE_SHARE = 0.1
_TOLD_EVERY_S = 10.0
_LONGEST = {False: 1.8, True: 1.0}  # times as long at most, where a busy machine has not come to MINIMUM by then


def add_arguments(options: Any) -> None:
    options.add_argument("--seconds", type=float, help="all races together last so long, whatever they come to")


def is_broken(figures: dict[str, float | None]) -> bool:
    """Whether a promise was seen broken: no busy machine explains that."""
    return bool(figures["violations"])


def run(quick: bool, seconds: float | None = None) -> dict[str, float]:
    """Figures of all races together. A violation is told on stderr."""
    names = ("publishes", "kills", "reads", "overtaken", "violations", "naive_violations")
    total: dict[str, float] = dict.fromkeys(names, 0.0)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="servicectl-race-", dir=memory if memory.is_dir() else None) as scratch:
        estate = MiniatureEstate(Path(scratch) / "estate", batch_seconds=1.0)
        estate.folder.mkdir()
        with estate, stores(Path(scratch)) as places:
            for store in places:
                track = _track(Path(scratch), estate.redis_url, store())
                for name in modules_of_a_publish(track):
                    with suppress(ImportError):
                        importlib.import_module(name)
                _forget(track)
            for publishers, share in _SHARES.items():
                for store in places:
                    part = share / len(places)
                    shortest = (seconds or _SECONDS[quick]) * part
                    longest = shortest if seconds else shortest * _LONGEST[quick]
                    enough = {name: least * part for name, least in MINIMUM.items()}
                    track = _track(Path(scratch), estate.redis_url, store())
                    figures = _race(track, publishers, shortest, longest, enough)
                    _forget(track)
                    watched = max(2.0, shortest * _NAIVE_SHARE)
                    naive = _naive(_track(Path(scratch), estate.redis_url, store()), publishers, watched)
                    for name, value in (figures | {"naive_violations": naive}).items():
                        total[name] += value
                    _tell(f"{publishers} publishers, {track.url}: {figures}, naive {naive:g}")
    return total


def _race(track: Track, publishers: int, seconds: float, longest: float, enough: dict[str, float]) -> dict[str, float]:
    one_publish = _seconds_of_a_publish(track)
    report, synced = track.folder / "report", track.folder / "synced"
    installations = [f"installation-{number}" for number in range(publishers)]
    reading = forked(lambda: reader(track, report))
    syncing = forked(lambda: syncer(track, synced))

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

    kills = _storm(dict.fromkeys(installations, start), is_over, one_publish, lambda: _newest(report))
    _end(syncing)
    at_the_end = track.folder / "converged"

    def examine() -> None:
        at_the_end.write_text(json.dumps(converged(track, installations)))

    _, status = os.waitpid(forked(examine), 0)
    _end(reading)
    seen = _report(report)
    failed, outcomes = json.loads(at_the_end.read_text()) if status == 0 else (["the end could not be examined"], {})
    _tell(f"{publishers} publishers, {track.url}: publishes of those that were not killed for good ended {outcomes}")
    broken = [text for one in (*seen, *_report(synced)) for text in one["violations"]] + failed
    for text in broken[:20]:
        _tell(f"violation: {text}")
    generations = [one["generation"] for one in seen if one["generation"] is not None]
    return {
        "publishes": float(max(generations, default=0)),
        "kills": float(kills),
        "reads": float(len(seen)),
        "overtaken": float(sum(one["overtaken"] for one in seen)),
        "violations": float(len(broken)),
    }


def _naive(track: Track, publishers: int, seconds: float) -> float:
    """What the same reader sees of today's way."""
    report = track.folder / "report"
    reading = forked(lambda: reader(track, report))
    starts = dict.fromkeys(map(str, range(publishers)), lambda _name: forked(lambda: naive_publisher(track)))
    _storm(starts, lambda elapsed, _: elapsed > seconds, 0.5, None)
    _end(reading)
    return float(sum(1 for one in _report(report) if one["violations"]))


def _storm(
    starts: dict[str, Callable[[str], int]],
    is_over: Callable[[float, int], bool],
    one_publish: float,
    published: Callable[[], int] | None,
) -> int:
    """Run one process per name, kill one at random again and again and start it anew, until it is over; the number of kills.

    Kills come at any moment of a publish, and wait for publishes where they are ahead of them.
    """
    began, kills, last = time.monotonic(), 0, time.monotonic()
    alive = {name: start(name) for name, start in starts.items()}
    due = began
    while not is_over(time.monotonic() - began, kills):
        for name, pid in alive.items():
            if os.waitpid(pid, os.WNOHANG)[0]:
                alive[name] = starts[name](name)
        now = time.monotonic()
        ahead = published is not None and kills >= _KILLS_PER_PUBLISH * (published() + 1)
        if now >= due and (not ahead or now - last > _PATIENCE_S):
            name = random.choice(list(alive))
            _end(alive[name])
            kills, last = kills + 1, now
            due = now + random.uniform(0.0, 2 * one_publish)
            alive[name] = starts[name](name)
        time.sleep(0.02)
    for pid in alive.values():
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
