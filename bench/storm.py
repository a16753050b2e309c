"""The listener and the timers beside each other: does anybody ever see a lock error?

An estate in small; `servicectl listen`, asked for `sync-production` again and again by two callers, and beside it what
timers and operators start: `sync-production`, `jobs resume`, `jobs list`, `jobs list --unfinished`, `schedules list`,
each as a process, one after the other in `--lanes` lanes; and all the while one retrain after the other of a model over
45,211 real rows. `lock_errors` counts processes and calls that told of the job store's lock or its file, `list_failures`
the `jobs list` that gave no list, `failures` every process and call that ended in another status than it may: 0, and of
what works on a scope also 75 (busy: another process works on it).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

LIMITS = {"lock_errors": 0.0, "failures": 0.0, "list_failures": 0.0}
MINIMUM = {"lists": 1.0, "retrains": 1.0}
_COMMANDS = (
    ("sync-production",),
    ("jobs", "resume"),
    ("jobs", "list"),
    ("jobs", "list", "--unfinished"),
    ("schedules", "list"),
)
_RETRAIN = ("retrain", "Calls", "--no-publish")
_MAY_BE_BUSY = (("sync-production",), ("jobs", "resume"), _RETRAIN)  # a retrain that waits is taken by `jobs resume`
_FIGURES = ("processes", "calls", "lists", "retrains", "lock_errors", "failures", "list_failures")
_MOST_S = 3600.0
_LOCK_WORDS = ("job store", "Could not set lock", "holds", "is damaged")
_CALLERS = 2
_MODEL = """
[models.Calls]
label = "subscribed"
features = ["age", "balance_eur", "campaign_contacts"]
[models.Calls.source]
kind = "sql"
query = "SELECT * FROM read_parquet('{file}')"
"""
_BETWEEN_CALLS_S = 0.2


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    what = f"how long the storm lasts, at most {_MOST_S:g} (default: %(default)g)"
    parser.add_argument("--seconds", type=_length, default=600.0, help=what)
    parser.add_argument("--lanes", type=int, default=4, help="processes at a time beside the listener (%(default)s)")


def _length(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= _MOST_S:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {_MOST_S:g}")
    return seconds


def is_fine(arguments: tuple[str, ...], status: int, out: str) -> bool:
    """Whether a command may end like that. A list is one only if it can be read."""
    if status != 0:
        return status == 75 and arguments in _MAY_BE_BUSY
    if arguments[:2] != ("jobs", "list"):
        return True
    try:
        return isinstance(json.loads(out)["jobs"], list)
    except (ValueError, KeyError):
        return False


class _Storm:
    def __init__(self, config: Path, seconds: float) -> None:
        self.config = config
        self.until = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.told: list[str] = []
        self._one_at_a_time = threading.Lock()

    def over(self) -> bool:
        return time.monotonic() > self.until

    def note(self, what: str, text: str, *, fine: bool) -> None:
        locked = any(word in text for word in _LOCK_WORDS)
        with self._one_at_a_time:
            self.counts["lock_errors"] += locked
            self.counts["failures"] += not fine
            self.counts[what] += 1
            if locked or not fine:
                self.told.append(f"{what}: {text.strip()[:300]}")

    def lane(self, first: int) -> None:
        for arguments in itertools.islice(itertools.cycle(_COMMANDS), first, None):
            if self.over():
                return
            self.process(arguments)

    def retrains(self) -> None:
        while not self.over():
            self.process(_RETRAIN)

    def process(self, arguments: tuple[str, ...]) -> None:
        ended = subprocess.run(_command(self.config, "--json", *arguments), capture_output=True, text=True)
        fine = is_fine(arguments, ended.returncode, ended.stdout)
        self.note("processes", f"{' '.join(arguments)}: status {ended.returncode}: {ended.stderr}", fine=fine)
        with self._one_at_a_time:
            self.counts["lists"] += arguments[:2] == ("jobs", "list")
            self.counts["list_failures"] += arguments[:2] == ("jobs", "list") and not fine
            self.counts["retrains"] += arguments == _RETRAIN and ended.returncode == 0

    def caller(self, address: str) -> None:
        import grpc

        from servicectl._pb import myservice_pb2, myservice_pb2_grpc

        with grpc.insecure_channel(address) as channel:
            stub = myservice_pb2_grpc.JobSchedulerStub(channel)  # type: ignore[no-untyped-call]  # generated
            while not self.over():
                try:
                    stub.TriggerJob(myservice_pb2.TriggerJobRequest(job_name="sync-production"), timeout=30)
                    self.note("calls", "", fine=True)
                except grpc.RpcError as error:
                    # Asked for more than the rate allows: no fault.
                    fine = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                    self.note("calls", f"TriggerJob: {error.details()}", fine=fine)
                time.sleep(_BETWEEN_CALLS_S)


def run(quick: bool, seconds: float = 600.0, lanes: int = 4) -> dict[str, float]:
    """The counts. Raises ServicectlError where a part of the estate does not start."""
    from servicectl.miniature import data
    from servicectl.miniature.estate import MiniatureEstate

    with (
        tempfile.TemporaryDirectory(prefix="servicectl-bench-") as scratch,
        MiniatureEstate(Path(scratch) / "estate") as estate,
    ):
        config = Path(scratch) / "servicectl.toml"
        config.write_text(estate.config_text(_MODEL.format(file=data.FILE)))
        address = f"unix:{scratch}/listen.sock"
        listener = subprocess.Popen(
            _command(config, "listen", "--address", address),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            while not Path(f"{scratch}/listen.sock").exists() and listener.poll() is None:
                time.sleep(0.05)
            storm = _Storm(config, 30.0 if quick else seconds)
            threads = [threading.Thread(target=storm.lane, args=(number,)) for number in range(lanes)]
            threads.append(threading.Thread(target=storm.retrains))
            threads += [threading.Thread(target=storm.caller, args=(address,)) for _ in range(_CALLERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            listener.terminate()
            _, told = listener.communicate()
        storm.note("listener", told, fine=listener.returncode == 0)
    for line in storm.told[:20]:
        print(line, file=sys.stderr)
    return {name: float(storm.counts[name]) for name in _FIGURES}


def _command(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "servicectl", "--config", os.fspath(config), *arguments]
