"""A small machine on this one: processes, users, files, cgroups and network of its own, there in a fraction of a second.

Its root is an overlay on ours whose changes live in memory, so its process 1 may be systemd or start cron, and it may
install what it likes: nothing of that is seen outside, and all of it ends with its process 1. servicectl is installed
in it as docs/timers.md expects.

A systemd that ran in our own cgroup would move every process of this machine into a scope of its own: hence a child
cgroup in every hierarchy, entered before anything else, and the kernel's switches (/proc/sys) read-only.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.parts import ROOT, missing, program

DEADLINE_S = 60.0
SOURCE = "/opt/servicectl/source"  # this checkout, as the machine sees it
PYTHON = "/opt/servicectl/bin/python"
CONFIG = "/etc/servicectl/servicectl.toml"
STATE = "/var/lib/servicectl"
_NAME = "servicectl-test-"  # of cgroups and folders; then our process and something of each machine's own
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": _PATH, "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0", "LC_ALL": "C.UTF-8"}

# Enter the cgroups and become the machine's parent; setpriv, so that a killed test run takes its machine along.
_ENTER = """
while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift
exec setpriv --pdeathsig KILL unshare --fork --kill-child --mount --pid --uts --ipc --net --cgroup "$@"
"""

# Process 1, until it becomes what it was asked to be. What this machine has of servicectl's is covered, never removed.
# Homes are hidden from services, and an interpreter or a checkout may lie in one, so both get a place of their own.
_BUILD = """
set -eu
umask 022
base=$1 home=$2 packages=$3 checkout=$4 cgroups=$5 init=$6

mount --make-rprivate /
mount -t tmpfs -o mode=755 machine "$base"
mkdir "$base/upper" "$base/work" "$base/root"
mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" machine "$base/root"
cd "$base/root"

mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
eval "$cgroups"

mount -t tmpfs -o mode=755,nosuid dev dev
mkdir dev/pts dev/shm
for node in null zero full random urandom tty; do
    touch "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd

mount -t tmpfs -o mode=755 run run
for folder in tmp var/tmp; do mount -t tmpfs -o mode=1777 tmp "$folder"; done
for folder in etc/systemd/system etc/servicectl etc/cron.d var/spool/cron var/lib/servicectl var/lib/systemd \
    opt/servicectl usr/local/bin; do
    mkdir -p "$folder"
    mount -t tmpfs -o mode=755 machine "$folder"
done

cd opt/servicectl
python=$(basename "$(dirname "$packages")")
mkdir -p interpreter packages source bin "lib/$python/site-packages"
mount --bind "$home" interpreter
mount --bind "$packages" packages
mount --bind "$checkout" source
for folder in interpreter packages source; do mount -o remount,bind,ro "$folder"; done
echo 'home = /opt/servicectl/interpreter/bin' >pyvenv.cfg
for folder in packages source; do echo "/opt/servicectl/$folder"; done >"lib/$python/site-packages/places.pth"
ln -s "/opt/servicectl/interpreter/bin/$python" bin/python
cd "$base/root"
cat >usr/local/bin/servicectl <<'END'
#!/opt/servicectl/bin/python
from servicectl.__main__ import main
main()
END
chmod 755 usr/local/bin/servicectl

mkdir -p .before
pivot_root . .before
cd /
umount -l /.before
rmdir /.before
# An interpreter that is a shared library is told where it was built, not where it lies now.
echo /opt/servicectl/interpreter/lib >/etc/ld.so.conf.d/00-servicectl.conf
ldconfig
exec env -i PATH="$PATH" container=servicectl sh -euc "$init"
"""


@dataclass(frozen=True)
class Hierarchy:
    """A cgroup hierarchy: the controllers that /proc/self/cgroup names, and our own folder in it."""

    controllers: str  # "" for version 2
    folder: Path  # where a cgroup of a test's goes


@dataclass(frozen=True)
class Machine:
    """A running one. `pid` is its process 1 as we see it, `said` what that wrote."""

    pid: int
    cgroups: Mapping[str, Path]  # controller, or name=systemd, or "" for version 2 -> the machine's folder of it
    said: Path

    def path(self, inside: str) -> Path:
        """A file of the machine's as we reach it; links in it would lead to ours."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        target = self.path(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def processor_s(self, cgroup: str) -> float:
        """Seconds of the processor that the processes now in a cgroup of systemd's have used."""
        tree = self.cgroups.get("name=systemd") or self.cgroups[""]
        ticks = 0
        with suppress(FileNotFoundError):
            for pid in (tree / cgroup.lstrip("/") / "cgroup.procs").read_text().split():
                ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def entered(self, *command: str) -> list[str]:
        """What to start here for a command to run in the machine, as its root."""
        return ["nsenter", "--target", str(self.pid), "--all", f"--wd=/proc/{self.pid}/root{SOURCE}", *command]

    def run(self, *command: str, check: bool = True, **environment: str) -> str:
        """What a command said in the machine. Fails with all it said if `check` is set and it failed."""
        done = subprocess.run(
            self.entered(*command),
            env={**ENVIRONMENT, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DEADLINE_S,
        )
        if check and done.returncode:
            raise AssertionError(f"{shlex.join(command)}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def servicectl(self, *arguments: str, check: bool = True, **environment: str) -> str:
        """A command of the operator's on the state that timers use."""
        user = ("setpriv", "--reuid=servicectl", "--regid=servicectl", "--clear-groups")
        return self.run(*user, "servicectl", *arguments, check=check, STATE_DIRECTORY=STATE, **environment)

    def jobs(self) -> list[dict[str, Any]]:
        """Every job, oldest first."""
        jobs: list[dict[str, Any]] = json.loads(self.servicectl("--json", "jobs", "list", "--all"))["jobs"]
        return jobs[::-1]

    def forget_jobs(self) -> None:
        """Empty the state folder."""
        for entry in self.path(STATE).iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def until(holds: Callable[[], bool], what: Callable[[], str] | str) -> None:
    """Look until it holds; fail with what did not happen when the time is over."""
    limit = time.monotonic() + DEADLINE_S
    while not holds():
        if time.monotonic() > limit:
            raise AssertionError(f"waited {DEADLINE_S:g} s for {what if isinstance(what, str) else what()}")
        time.sleep(0.1)


def documented(page: str, heading: str) -> str:
    """The shell commands below a heading of a page in docs/, as one text."""
    section = (ROOT / "docs" / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    assert lines, f"docs/{page} says nothing to type below {heading!r}"
    return "\n".join(lines)


@contextmanager
def machine(init: str) -> Iterator[Machine]:
    """Given the shell text that is process 1 once the machine is made, the running machine; nothing of it is left.

    Skips by name, or fails in CI, where machines cannot be made.
    """
    for needed in ("unshare", "nsenter", "setpriv", "pivot_root", "mount"):
        program(needed)
    if os.geteuid() != 0:
        missing("root", "needed to start a machine of its own")
    sweep()
    ours = hierarchies()
    base = Path(tempfile.mkdtemp(prefix=f"{_NAME}{os.getpid()}-"))
    said = base.with_name(f"{base.name}.said")
    folders = {hierarchy: hierarchy.folder / base.name for hierarchy in ours}
    process = None
    try:
        for hierarchy, folder in folders.items():
            _make_cgroup(hierarchy, folder)
        with said.open("wb") as output:
            process = subprocess.Popen(
                ["sh", "-euc", _ENTER, "enter", *map(str, folders.values()), "--",
                 "sh", "-c", _BUILD, "machine", str(base), sys.base_prefix, sysconfig.get_path("purelib"), str(ROOT),
                 _mounts(ours), init],
                env={"PATH": _PATH},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C ends the tests, which then end it
            )  # fmt: skip
        yield Machine(_process_1(process, said), _by_controller(folders), said)
    finally:
        if process is not None:
            _end(process)
        for folder in folders.values():
            _remove_cgroup(folder)
        base.rmdir()
        said.unlink(missing_ok=True)


def hierarchies() -> list[Hierarchy]:
    """Every hierarchy there is, with the cgroup that this process is in, or one above it that has controllers to give."""
    mounts: list[tuple[str, set[str], str, Path]] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, told = after.split()[:3]
        if kind in ("cgroup", "cgroup2"):
            mounts.append((kind, set(told.split(",")), root, Path(point)))
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        wanted = set(controllers.split(",")) if controllers else set()
        for kind, options, top, at in mounts:
            if (kind == "cgroup2") is (not controllers) and wanted <= options and own.startswith(top):
                ours = at / os.path.relpath(own, top)
                found.append(Hierarchy(controllers, ours if controllers else _with_controllers(ours, at)))
                break
        else:
            missing("a machine of its own", f"the cgroup hierarchy {controllers or 'v2'!r} is not mounted here")
    return found


def offered(cgroup: Path) -> set[str]:
    """The controllers that a cgroup of version 2 gives its children."""
    return set((cgroup / "cgroup.subtree_control").read_text().split())


def _with_controllers(ours: Path, top: Path) -> Path:
    """Version 2: the nearest cgroup from ours upwards whose children can be limited, else ours.

    One with processes in it, as ours is, can give its children no controllers, unless it is the kernel's own root.
    """
    upwards = [ours, *(place for place in ours.parents if place.is_relative_to(top))]
    return next((place for place in upwards if {"cpu", "memory"} <= offered(place)), ours)


def _make_cgroup(hierarchy: Hierarchy, folder: Path) -> None:
    """A new one is without what version 1's cpuset needs, and without controllers in version 2."""
    try:
        if not hierarchy.controllers:
            # The kernel refuses where processes are in the parent itself, as in most containers.
            for controller in (hierarchy.folder / "cgroup.controllers").read_text().split():
                with suppress(OSError):
                    (hierarchy.folder / "cgroup.subtree_control").write_text(f"+{controller}")
        folder.mkdir()
        # However much runs in it, a cgroup of the usual weight gets no more of a busy processor than one process of ours.
        for name, weight in (("cpu.shares", "4096"), ("cpu.weight", "400")):
            if (folder / name).exists():
                (folder / name).write_text(weight)
        if "cpuset" in hierarchy.controllers.split(","):
            for name in ("cpuset.cpus", "cpuset.mems"):
                (folder / name).write_text((hierarchy.folder / name).read_text())
    except OSError as error:
        missing("a machine of its own", f"no cgroup can be made in {hierarchy.folder}: {error.strerror}")


def _by_controller(folders: Mapping[Hierarchy, Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for hierarchy, folder in folders.items():
        names = hierarchy.controllers.split(",")
        if not hierarchy.controllers:
            names += (folder / "cgroup.controllers").read_text().split()
        found |= dict.fromkeys(names, folder)
    return found


def _mounts(ours: list[Hierarchy]) -> str:
    """The shell text that mounts the hierarchies in the machine, where our children of them are the roots."""
    if [hierarchy.controllers for hierarchy in ours] == [""]:
        return "mount -t cgroup2 cgroup sys/fs/cgroup"
    lines = ["mount -t tmpfs -o mode=755 cgroup sys/fs/cgroup"]
    for hierarchy in ours:
        name = hierarchy.controllers.removeprefix("name=") or "unified"
        kind = f"cgroup -o none,{hierarchy.controllers}" if "=" in hierarchy.controllers else "cgroup2"
        if hierarchy.controllers and "=" not in hierarchy.controllers:
            kind = f"cgroup -o {hierarchy.controllers}"
        lines += [f"mkdir sys/fs/cgroup/{name}", f"mount -t {kind} cgroup sys/fs/cgroup/{name}"]
    return "\n".join(lines)


def _process_1(parent: subprocess.Popen[bytes], said: Path) -> int:
    """Our number of the machine's process 1, once its root is its own."""
    found: list[int] = []

    def made() -> bool:
        if parent.poll() is not None:
            missing("a machine of its own", said.read_text(errors="replace").strip() or "it ended at once")
        found[:] = _children(parent.pid)
        # The shell that makes it has our environment, what it then becomes has the machine's.
        with suppress(FileNotFoundError):
            return bool(found) and b"container=servicectl" in Path(f"/proc/{found[0]}/environ").read_bytes()
        return False

    until(made, lambda: f"the machine: {said.read_text(errors='replace')}")
    return found[0]


def _children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            # The name, in parentheses, may hold anything; the parent is the second word after it.
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
    return found


def _end(parent: subprocess.Popen[bytes]) -> None:
    """Kill process 1, with which the kernel ends every other and lets go of the mounts, and wait for it."""
    for child in _children(parent.pid):
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(child)
            try:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], DEADLINE_S)
            finally:
                os.close(handle)
    parent.kill()
    parent.wait()


def _remove_cgroup(folder: Path) -> None:
    """With what systemd made in it. A process that has just ended may be counted for a moment longer."""
    for inner, _, _ in os.walk(folder, topdown=False):

        def removed(inner: str = inner) -> bool:
            with suppress(FileNotFoundError):
                try:
                    Path(inner).rmdir()
                except OSError:
                    return False
            return True

        until(removed, f"the cgroup {inner} to be empty")


def sweep() -> None:
    """Remove what test runs that were killed have left: empty folders, as their processes and mounts ended with them."""
    beside = Path(tempfile.gettempdir())
    for folder in (hierarchy.folder for hierarchy in hierarchies()):
        for left in _of_the_dead(folder):
            _remove_cgroup(left)
    for left in _of_the_dead(beside):
        with suppress(OSError):
            left.rmdir() if left.is_dir() else left.unlink()


def _of_the_dead(folder: Path) -> list[Path]:
    found = ((left, left.name.removeprefix(_NAME).partition("-")[0]) for left in folder.glob(f"{_NAME}*"))
    return [left for left, owner in found if not Path("/proc", owner).exists()]
