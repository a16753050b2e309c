"""The listener and the timers beside each other: does anybody ever see a lock error?

An estate in small with no model in it; `servicectl listen`, asked for `sync-production` again and again by two callers, and
beside it what timers and operators start: `sync-production`, `jobs resume`, `jobs list`, `jobs list --unfinished`,
`schedules list`, each as a process, one after the other in `--lanes` lanes. `lock_errors` counts processes and calls that
told of the job store's lock or its file, `failures` those that ended in another status than 0 or 75 (busy: another
process works on the same scope).
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

LIMITS = {"lock_errors": 0.0, "failures": 0.0}
_COMMANDS = (
    ("sync-production",),
    ("jobs", "resume"),
    ("jobs", "list"),
    ("jobs", "list", "--unfinished"),
    ("schedules", "list"),
)
_LOCK_WORDS = ("job store", "Could not set lock", "holds", "is damaged")
_CALLERS = 2
_BETWEEN_CALLS_S = 0.2


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the storm lasts (default: %(default)g)")
    parser.add_argument("--lanes", type=int, default=4, help="processes at a time beside the listener (%(default)s)")


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
            ended = subprocess.run(_command(self.config, *arguments), capture_output=True, text=True)
            self.note("processes", f"{' '.join(arguments)}: {ended.stderr}", fine=ended.returncode in (0, 75))

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
    from servicectl.miniature.estate import MiniatureEstate

    with (
        tempfile.TemporaryDirectory(prefix="servicectl-bench-") as scratch,
        MiniatureEstate(Path(scratch) / "estate") as estate,
    ):
        config = Path(scratch) / "servicectl.toml"
        config.write_text(estate.config_text())
        address = f"unix:{scratch}/listen.sock"
        storm = _Storm(config, 30.0 if quick else seconds)
        listener = subprocess.Popen(_command(config, "listen", "--address", address), stderr=subprocess.PIPE, text=True)
        try:
            while not Path(f"{scratch}/listen.sock").exists() and listener.poll() is None:
                time.sleep(0.05)
            threads = [threading.Thread(target=storm.lane, args=(number,)) for number in range(lanes)]
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
    return {name: float(storm.counts[name]) for name in ("processes", "calls", "lock_errors", "failures")}


def _command(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "servicectl", "--config", os.fspath(config), *arguments]
