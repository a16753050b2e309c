"""A machine that a real systemd has booted, with the shipped units installed by the very lines of docs/timers.md.

`python -m tests.parts.systemd FOLDER` is the estate of such a machine: its own process, started as a unit there.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.parts import program
from tests.parts.machine import CONFIG, PYTHON, SOURCE, STATE, Machine, machine, until

# The distribution's own units stay out: clocks, consoles and devices are not this machine's to set up. Without a
# machine-id systemd would take this for the first boot of a fresh disk and enable whatever is installed.
_INIT = """
for wants in sysinit basic multi-user timers sockets local-fs; do
    folder=/lib/systemd/system/$wants.target.wants
    [ ! -d $folder ] || mount -t tmpfs -o mode=755 none $folder
done
mkdir -p /etc/systemd/journald.conf.d
printf '[Journal]\\nStorage=volatile\\nRateLimitIntervalSec=0\\n' >/etc/systemd/journald.conf.d/machine.conf
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
cat >/etc/systemd/system/machine.target <<'END'
[Unit]
Requires=basic.target timers.target systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket
After=basic.target systemd-journald.service
END
exec /lib/systemd/systemd --system --unit=machine.target --show-status=no
"""

_ESTATE = f"""
[Service]
User=servicectl
StateDirectory=servicectl
WorkingDirectory={SOURCE}
ExecStart={PYTHON} -m tests.parts.systemd {STATE}/estate
"""


@dataclass
class Systemd:
    machine: Machine
    _forgotten: str = ""  # the place in the journal that reading begins at

    def ctl(self, *words: str, check: bool = True) -> str:
        return self.machine.run("systemctl", *words, check=check)

    def show(self, unit: str) -> dict[str, str]:
        """Every property of a unit."""
        lines = (line.partition("=") for line in self.ctl("show", "--timestamp=unix", unit).splitlines())
        return {name: value for name, _, value in lines}

    def timer(self, unit: str) -> dict[str, Any]:
        """When a timer is due next and was last, in microseconds since 1970."""
        [found] = json.loads(self.ctl("list-timers", "--all", "--output=json", unit))
        return dict(found)

    def journal(self, **fields: str) -> list[dict[str, Any]]:
        """The entries with these fields since the last `forget`, oldest first."""
        self.machine.run("journalctl", "--sync")
        begin = [f"--after-cursor={self._forgotten}"] if self._forgotten else []
        # Not journalctl's own matches: with a cursor, they lose the first entry that matches.
        lines = self.machine.run("journalctl", "--quiet", "--all", "--output=json", *begin).splitlines()
        return [entry for entry in map(json.loads, lines) if fields.items() <= entry.items()]

    def said(self, unit: str) -> list[tuple[int, str]]:
        """(priority, text) of what a unit's processes wrote."""
        return [(int(entry["PRIORITY"]), entry["MESSAGE"]) for entry in self.journal(_SYSTEMD_UNIT=unit)]

    def ends(self, unit: str) -> list[str]:
        """What systemd noted of each end of a unit's runs: "done", or "failed"."""
        words = {"39f53479d3a045ac8e11786248231fbf": "done", "be02cf6855d2428ba40df7e9d022f03d": "failed"}
        noted = (entry.get("MESSAGE_ID") for entry in self.journal(UNIT=unit))
        return [words[found] for found in noted if found in words]

    @contextmanager
    def changed(self, unit: str, text: str) -> Iterator[None]:
        """Given a unit and settings, the unit overridden by them, as by `systemctl edit`, until the end; then stopped."""
        folder = f"/run/systemd/system/{unit}.d"
        self.machine.write(f"{folder}/test.conf", text)
        self.ctl("daemon-reload")
        try:
            yield
        finally:
            self.ctl("stop", unit)
            shutil.rmtree(self.machine.path(folder))
            self.ctl("daemon-reload")
            self.ctl("reset-failed", unit, check=False)

    def forget(self) -> None:
        """Begin anew: nothing runs or has failed or was said, no job was ever taken."""
        self.ctl("stop", "servicectl-*.timer", "servicectl-*.service")
        self.ctl("reset-failed")
        self.machine.forget_jobs()
        self.machine.run("journalctl", "--sync")
        told = self.machine.run("journalctl", "--quiet", "--lines=0", "--show-cursor")
        self._forgotten = told.partition("cursor: ")[2].strip()

    @contextmanager
    def estate(self, models: str) -> Iterator[None]:
        """Redis and a handler in the machine, with rows to train on, and a configuration that names them."""
        before = self.machine.path(CONFIG).read_text()
        self.machine.write("/run/systemd/system/estate.service", _ESTATE)
        self.ctl("daemon-reload")
        self.ctl("start", "estate.service")
        try:
            told = self.machine.path(f"{STATE}/estate/servicectl.toml")
            until(told.exists, lambda: f"the estate: {self.said('estate.service')}")
            self.machine.write(CONFIG, told.read_text() + models)
            yield
        finally:
            self.ctl("stop", "estate.service")
            self.machine.write(CONFIG, before)


@contextmanager
def systemd() -> Iterator[Systemd]:
    """A booted machine, which no Redis runs on."""
    program("systemctl")
    with machine(_INIT) as made:
        booted = Systemd(made)

        def is_up() -> bool:
            return booted.ctl("is-active", "machine.target", check=False).strip() == "active"

        until(is_up, lambda: f"systemd to boot: {made.said.read_text(errors='replace')}")
        yield booted


def _serve_estate(folder: Path) -> None:
    from servicectl.clock import SYSTEM
    from servicectl.estate.queue import HandlerQueue
    from servicectl.files import write_atomically
    from tests.parts.estate import OLD_ROWS, rows_sql
    from tests.parts.handler import handler
    from tests.parts.redis import redis_server

    folder.mkdir()
    with redis_server(folder) as redis, handler(redis.url, folder, batch_seconds=0.05):
        queue = HandlerQueue(redis.url, timeout_s=30, statement_deadline_s=60, clock_skew_s=5, clock=SYSTEM)
        queue.run(rows_sql(0, OLD_ROWS))
        queue.run("CREATE VIEW features AS SELECT * FROM features_table")
        queue.close()
        text = f'[redis]\nurl = "{redis.url}"\n[serving]\ncanary = "off"\n'
        write_atomically(folder / "servicectl.toml", text.encode())
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    _serve_estate(Path(sys.argv[1]))
