"""`selftest crash` from its options to its exit status."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from servicectl import log
from servicectl.actions import kinds
from servicectl.cli.demo_run import ending_in_order
from servicectl.cli.screen import Cell, Styled
from servicectl.config import secret
from servicectl.errors import ConfigError, ExitStatus
from servicectl.selftest.crash_matrix import Killed, Matrix, Options, Report
from servicectl.selftest.plan import AtInstant, kill_at

if TYPE_CHECKING:
    from servicectl.cli.session import Session

_SHOWN = 10


def crash(
    at_session: Session,
    *,
    kills: int,
    workers: int,
    seed: int,
    actions: Sequence[str],
    at: str | None,
    artifacts: str | None,
) -> NoReturn:
    """Run the crash matrix and leave: 0 only if nothing was different and every planned kill happened."""
    if shutil.which("redis-server") is None:
        raise ConfigError("there is no redis-server on PATH", cure="install it; the selftest needs a real one")
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    options = Options(
        kills=kills,
        workers=workers,
        seed=seed,
        kept=Path(f"servicectl-selftest-{stamp}").absolute(),
        actions=tuple(actions),
        at=kill_at(at) if at else None,
        artifacts=artifacts,
        connection_string=_connection_string(at_session) if artifacts else None,
    )
    with ending_in_order(), _told(at_session) as tell:
        report = Matrix(options, tell=tell).run(kinds.all_names())
    status = ExitStatus.OK if report.is_clean else ExitStatus.FAILED
    at_session.end(as_json(report, options), lambda: _show(at_session, report, options), status)


def as_json(report: Report, options: Options) -> dict[str, Any]:
    """The schema is in docs/json.md."""
    return {
        "kills": report.kills,
        "boundaries": sum(row["boundaries_killed_at"] for row in _rows(report)),
        "differences": report.differences,
        "seed": options.seed,
        "seconds": round(report.seconds, 1),
        "actions": _rows(report),
        "not_reached": [{"action": one.action, "at": str(one.kill)} for one in report.unreached],
        "kinds_without_scenario": list(report.kinds_without),
        "first_difference": None if report.first is None else _difference(report.first, report, options),
    }


def _difference(first: Killed, report: Report, options: Options) -> dict[str, Any]:
    return {
        "action": first.action,
        "at": str(first.kill),
        "problems": list(first.problems),
        "reproduction": report.reproduction,
        "folder": str(options.kept),
    }


def _rows(report: Report) -> list[dict[str, Any]]:
    """One per action, in the order of the scenarios."""
    rows = []
    for name, undisturbed in report.undisturbed.items():
        mine = [one for one in report.killed if one.action == name]
        at_random = [one for one in mine if isinstance(one.kill, AtInstant) and one.reached]
        at_points = {one.kill for one in mine if not isinstance(one.kill, AtInstant) and one.reached}
        rows.append(
            {
                "action": name,
                "kinds": sorted(undisturbed.kinds),
                "boundaries": len(undisturbed.known.boundaries),
                "boundaries_killed_at": len(at_points),
                "random_kills": len(at_random),
                "most_resumes": max((one.resumes for one in mine), default=0),
                "differences": sum(bool(one.problems) for one in mine),
                "seconds_per_kill": round(sum(one.seconds for one in mine) / len(mine), 2) if mine else None,
            }
        )
    return rows


def _show(at: Session, report: Report, options: Options) -> None:
    columns = ["action", "boundaries", "killed at", "random kills", "resumes", "differences", "s/kill"]
    rows = [[_cell(row, column) for column in _COLUMNS] for row in _rows(report)]
    at.screen.table(columns, rows, right=columns[1:])
    for one in [one for one in report.killed if one.problems][:_SHOWN]:
        at.screen.line(Styled(f"{one.action}, killed at {one.kill}:", "red"))
        for problem in one.problems[:_SHOWN]:
            at.screen.line(f"  {problem}")
    for one in report.unreached:
        at.screen.line(Styled(f"{one.action}: never came by {one.kill}", "red"))
    for kind in report.kinds_without:
        at.screen.line(Styled(f"no scenario runs a {kind} job", "red"))
    moments = Counter(one.kill.moment for one in report.killed if not isinstance(one.kill, AtInstant) and one.reached)
    at.screen.line(", ".join(f"{count} {moment}" for moment, count in moments.most_common()))
    took = f"in {report.seconds:.0f} s, seed {options.seed}"
    outcome = "0 differences" if not report.differences else f"{report.differences} with differences"
    at.screen.line(f"{report.kills} kills {took}: ", Styled(outcome, "red" if report.differences else "green"))
    if report.first is not None:
        at.screen.line(f"the first one is kept in {options.kept}; again: {report.reproduction}")


_COLUMNS = (
    "action", "boundaries", "boundaries_killed_at", "random_kills", "most_resumes", "differences", "seconds_per_kill",
)  # fmt: skip


def _cell(row: dict[str, Any], column: str) -> Cell:
    text = "-" if row[column] is None else str(row[column])
    return Styled(text, "bold red") if column == "differences" and row[column] else text


@contextmanager
def _told(at: Session) -> Iterator[Callable[[str], None]]:
    """Progress in place where somebody watches; else nothing."""
    if at.as_json or not sys.stderr.isatty() or log.verbosity() < log.Level.NOTICE:
        yield log.info
        return
    from rich.console import Console

    with Console(stderr=True).status("selftest crash: starting estates") as status:
        yield lambda text: status.update(f"selftest crash · {text}")


def _connection_string(at: Session) -> str | None:
    file = at.world.config.artifacts.connection_string_file if at.config_path else None
    return secret("AZURE_STORAGE_CONNECTION_STRING", file, "azure-connection-string")
