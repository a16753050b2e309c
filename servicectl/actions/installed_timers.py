"""What on this machine starts servicectl by the calendar: systemd's timers and cron's tables, read as they lie there.

Files are read below a root, so that a folder can stand for a machine. What cannot be read is left out: a user's own
cron table and units are his alone.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from servicectl.actions.kinds import DRIFT_CHECK, RETRAIN, SYNC_PRODUCTION

RESUME = "resume"
JOBS = (SYNC_PRODUCTION, DRIFT_CHECK, RETRAIN, RESUME)

# systemd.unit(5), most important first.
_SYSTEM = ("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")  # fmt: skip
_USER = ("etc/systemd/user", "run/systemd/user", "usr/local/lib/systemd/user", "usr/lib/systemd/user")
_CRON_PATH = "/usr/bin:/bin"  # of cron itself, where a table sets none

_SPANS = {
    "us": 1e-6, "usec": 1e-6, "ms": 1e-3, "msec": 1e-3, "": 1.0, "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0,
    "m": 60.0, "min": 60.0, "minute": 60.0, "minutes": 60.0, "h": 3600.0, "hr": 3600.0, "hour": 3600.0, "hours": 3600.0,
    "d": 86400.0, "day": 86400.0, "days": 86400.0, "w": 604800.0, "week": 604800.0, "weeks": 604800.0,
}  # fmt: skip
_NICKNAMES = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A start of servicectl: which job, by which program, and whether it goes by slots."""

    job: str
    program: str
    scheduled: bool


@dataclass(frozen=True)
class Timer:
    """An enabled timer that starts servicectl. `user`: whose own it is; None for one of the system."""

    name: str
    file: Path
    command: Command
    calendars: tuple[str, ...]
    persistent: bool
    delay_s: float
    accuracy_s: float
    user: str | None = None


@dataclass(frozen=True)
class CronLine:
    """A line that starts servicectl. `calendar` has five fields, or is "@reboot"; `unless` names timers it gives way to."""

    file: Path
    line: int
    calendar: str
    command: Command
    path: str
    unless: frozenset[str]
    text: str

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class CronTable:
    """A file that names servicectl. `settings` are its assignments; `lines` what cron would make of it."""

    file: Path
    lines: tuple[CronLine, ...]
    settings: Mapping[str, str]
    owner: int
    mode: int
    ends: bool
    in_folder: bool


@dataclass(frozen=True)
class Installed:
    """`owner` is root's number; `lingering` are the users whose own units run while nobody is logged in."""

    timers: tuple[Timer, ...]
    tables: tuple[CronTable, ...]
    owner: int
    lingering: frozenset[str]
    loose: tuple[Path, ...] = ()

    @property
    def lines(self) -> tuple[CronLine, ...]:
        return tuple(line for table in self.tables for line in table.lines)


def read(root: Path, home: Path | None = None, user: str = "", own_table: str = "") -> Installed:
    """Everything below a root; `home` has the units of `user`, `own_table` is what `crontab -l` says."""
    loose: list[Path] = []
    timers = [*_timers([root / folder for folder in _SYSTEM], None, loose)]
    own = [home / ".config/systemd/user"] if home else []
    timers += _timers([*own, *(root / folder for folder in _USER)], user or None, loose)
    tables = list(_tables(root))
    table = table_of(Path(f"{user}'s crontab"), own_table, has_user=False)
    if table.lines:
        tables.append(replace(table, ends=True))  # cron itself has seen to that
    linger = root / "var/lib/systemd/linger"
    return Installed(
        timers=tuple(timers),
        tables=tuple(tables),
        owner=root.stat().st_uid,
        lingering=frozenset(file.name for file in _files(linger)),
        loose=tuple(loose),
    )


def command_in(words: Sequence[str]) -> Command | None:
    """The job that a command line starts by the calendar, if it is one of servicectl's."""
    for at, word in enumerate(words):
        if PurePosixPath(word).name != "servicectl":
            continue
        rest = iter(words[at + 1 :])
        told = []
        for one in rest:
            if one == "--config":
                next(rest, None)
            else:
                told.append(one)
        named = [one for one in told if not one.startswith("-")]
        job = RESUME if named[:2] == ["jobs", "resume"] else named[0] if named else ""
        if job in JOBS and (job != RETRAIN or "--all" in told):
            return Command(job, word, "--scheduled" in told)
    return None


def span_s(text: str) -> float:
    """Seconds of a systemd.time(7) span like "1h 30min"; infinity for what is none."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if not parts or any(unit not in _SPANS for _, unit in parts):
        return float("inf")
    return sum(float(number) * _SPANS[unit] for number, unit in parts)


# -- systemd ------------------------------------------------------------------------------------------------------------


def _timers(folders: Sequence[Path], user: str | None, loose: list[Path]) -> Iterator[Timer]:
    names = sorted({file.name for folder in folders for file in _files(folder) if file.suffix == ".timer"})
    for name in names:
        file, timer = _unit(folders, name)
        if file is None or not _is_enabled(folders, name):
            continue
        service, started = _unit(folders, _last(timer, "Timer.Unit") or f"{name.removesuffix('.timer')}.service")
        starts = (command_in(_words(line)) for line in started.get("Service.ExecStart", ()))
        command = next((one for one in starts if one is not None), None)
        if command is None:
            continue
        loose += [
            one for one in (file, service) if one is not None and one.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        ]
        yield Timer(
            name=name,
            file=file,
            command=command,
            calendars=tuple(timer.get("Timer.OnCalendar", ())),
            persistent=_last(timer, "Timer.Persistent").lower() in ("1", "yes", "true", "on"),
            delay_s=span_s(_last(timer, "Timer.RandomizedDelaySec") or "0"),
            accuracy_s=span_s(_last(timer, "Timer.AccuracySec") or "1min"),
            user=user,
        )


def _unit(folders: Sequence[Path], name: str) -> tuple[Path | None, dict[str, list[str]]]:
    """The file of a unit and its settings with all drop-ins, by "Section.Key"; no file for one that is masked."""
    file = next((folder / name for folder in folders if os.path.lexists(folder / name)), None)
    if file is None or not file.is_file():
        return None, {}
    settings: dict[str, list[str]] = {}
    for one in (file, *_drop_ins(folders, name)):
        _settle(settings, one)
    return file, settings


def _drop_ins(folders: Sequence[Path], name: str) -> list[Path]:
    stem, _, kind = name.rpartition(".")
    parts = stem.split("-")
    places = [f"{kind}.d", *(f"{'-'.join(parts[:n])}-.{kind}.d" for n in range(1, len(parts))), f"{name}.d"]
    found: dict[str, Path] = {}
    for folder in reversed(folders):  # of two with one name, the more important folder's counts
        for place in places:
            found.update({file.name: file for file in _files(folder / place) if file.suffix == ".conf"})
    return [found[name] for name in sorted(found)]


def _settle(settings: dict[str, list[str]], file: Path) -> None:
    section = ""
    for line in re.sub(r"\\\n", " ", _text(file)).splitlines():
        line = line.strip()
        if line.startswith("["):
            section = line.strip("[]")
        elif line and line[0] not in "#;" and "=" in line:
            key, _, value = line.partition("=")
            values = settings.setdefault(f"{section}.{key.strip()}", [])
            if value.strip():
                values.append(value.strip())
            else:
                values.clear()


def _is_enabled(folders: Sequence[Path], name: str) -> bool:
    return any(
        os.path.lexists(place / name)
        for folder in folders
        for place in (*folder.glob("*.wants"), *folder.glob("*.requires"))
    )


def _last(settings: Mapping[str, Sequence[str]], key: str) -> str:
    return (settings.get(key) or [""])[-1]


# -- cron ---------------------------------------------------------------------------------------------------------------


def _tables(root: Path) -> Iterator[CronTable]:
    folder = root / "etc/cron.d"
    for file in (root / "etc/crontab", *_files(folder), *_files(root / "var/spool/cron/crontabs")):
        try:
            content, status = file.read_text(errors="replace"), file.stat()
        except OSError:
            continue
        table = table_of(file, content, has_user=file.parent.name != "crontabs")
        if table.lines:
            yield CronTable(
                file, table.lines, table.settings, status.st_uid, status.st_mode, table.ends, file.parent == folder
            )


def table_of(file: Path, content: str, *, has_user: bool) -> CronTable:
    """A table's text as cron cuts it; `has_user` for those of the system, which name a user in each line."""
    settings: dict[str, str] = {}
    found = []
    for number, line in enumerate(content.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if assigned := re.match(r"""([A-Za-z_]\w*)\s*=\s*(.*)$""", line):
            settings[assigned[1]] = assigned[2].strip("\"'")
            continue
        fields = 1 if line.startswith("@") else 5
        cut = line.split(maxsplit=fields + has_user)
        if len(cut) <= fields + has_user:
            continue
        calendar = " ".join(cut[:fields])
        command = _shell_command(cut[-1])
        if command is not None:
            unless = frozenset(re.findall(r"systemctl\s[^;&|]*is-enabled\s[^;&|]*?(\S+\.timer)", cut[-1]))
            path = settings.get("PATH", _CRON_PATH)
            calendar = _NICKNAMES.get(calendar, calendar)
            found.append(CronLine(file, number, calendar, command, path, unless, cut[-1]))
    return CronTable(file, tuple(found), settings, 0, 0o644, content.endswith("\n"), in_folder=False)


def _shell_command(text: str) -> Command | None:
    commands = (command_in(_words(part)) for part in re.split(r"[;&|(){}\n]+", text))
    return next((one for one in commands if one is not None), None)


# -- beneath ------------------------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text.lstrip("@-:+!"))
    except ValueError:
        return text.split()


def _files(folder: Path) -> Iterable[Path]:
    try:
        return sorted(file for file in folder.iterdir() if not file.is_dir())
    except OSError:
        return ()


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
