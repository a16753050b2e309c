"""The job commands over 100,000 jobs, with steps and events, against the same commands over a few.

CPU time (user + system) of whole processes, medians over rounds in which both tables take turns; a figure is the ratio
of the large table to the small one. `submit` and `run` are programs that submit a job without steps and cancel it, or run
it. Half of the jobs are older than `jobs prune` keeps. `--jobs` sets how many. `doctor` finds no estate, and `retry` no
action of the job's kind: both end in 1, as they should.

`backup` has no limit: it copies the file, whose size is its cost. So does `restore`, which is not measured: it opens and
checks such a copy, too. `prune` is measured with --dry-run: what it deletes is a cost of its own, once.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ARGUMENTS = {
    "list": ("jobs", "list"),
    "list --failed": ("jobs", "list", "--failed"),
    "show": ("jobs", "show", "00000000beef"),
    "watch": ("jobs", "watch", "00000000beef"),
    "resume": ("jobs", "resume"),
    "prune": ("jobs", "prune", "--dry-run"),
    "cancel": ("jobs", "cancel", "8fff-{number:012x}"),
    "retry": ("jobs", "retry", "9fff-{number:012x}"),
    "schedules list": ("schedules", "list"),
    "doctor": ("doctor",),
    "backup": ("jobs", "backup", "{folder}/backup-{number}.duckdb"),
}
COMMANDS = (*ARGUMENTS, "submit", "run")
_UNLIMITED = ("backup",)
UNMEASURED = {"jobs restore": "it copies the file, as backup does, and opens and checks the copy"}
_FAILS_WITH = {"doctor": b"Redis", "retry": b"knows no job kind"}


def figure(command: str) -> str:
    return f"{command.replace(' --', '_').replace(' ', '_')}_ratio"


LIMITS = dict.fromkeys((figure(name) for name in COMMANDS if name not in _UNLIMITED), 2.0)
_JOBS = 100_000
_WAITING = 30


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--jobs", type=int, default=_JOBS, help=f"how many ended jobs (default {_JOBS})")


def run(quick: bool, jobs: int = _JOBS) -> dict[str, float]:
    """A ratio per command. Raises CalledProcessError when one fails."""
    rounds = 3 if quick else 9
    assert rounds < _WAITING
    with tempfile.TemporaryDirectory(prefix="servicectl-bench-") as scratch:
        folders = {"few": Path(scratch) / "few", "many": Path(scratch) / "many"}
        for size, folder in folders.items():
            folder.mkdir()
            (folder / "servicectl.toml").write_text(f"[state]\nfolder = '{folder}/state'\n")
            _fill(folder / "state", jobs if size == "many" else 1)
        seconds: dict[tuple[str, str], list[float]] = {(name, size): [] for name in COMMANDS for size in folders}
        for number in range(rounds + 1):
            for name in COMMANDS:
                for size, folder in folders.items():
                    taken = _cpu_seconds(_command(name, folder, number), _FAILS_WITH.get(name))
                    if number:  # the first writes bytecode and warms the page cache
                        seconds[name, size].append(taken)
    medians = {key: median(values) for key, values in seconds.items()}
    for name in COMMANDS:
        few, many = (medians[name, size] * 1000 for size in ("few", "many"))
        print(f"{name:<14} {few:6.0f} ms CPU over a few jobs, {many:6.0f} ms over {jobs:,}", file=sys.stderr)
    return {figure(name): round(medians[name, "many"] / medians[name, "few"], 3) for name in COMMANDS}


def _command(name: str, folder: Path, number: int) -> list[str]:
    if name not in ARGUMENTS:
        return [sys.executable, "-m", "bench.jobs_scale", str(folder / "state"), name]
    arguments = [argument.format(number=number, folder=folder) for argument in ARGUMENTS[name]]
    return [sys.executable, "-m", "servicectl", "--config", str(folder / "servicectl.toml"), *arguments]


def _fill(folder: Path, jobs: int) -> None:
    """Ended jobs over the last two years with four steps and three events each, one a minute or so; some wait, some failed."""
    from servicectl.store import Store

    ended = (
        "SELECT number, made, (lpad(to_hex(epoch_ms(made)), 12, '0') || '7000' || '8000' || CASE number WHEN 0 THEN"
        " '00000000beef' ELSE substr(md5(number::VARCHAR), 1, 12) END)::UUID AS job_id FROM"
        f" (SELECT range AS number, now()::TIMESTAMP - to_seconds(range * {730 * 86400 // jobs} + 60) AS made FROM range({jobs}))"
    )
    names = (
        "job_id, kind, step_schema, scope, spec, state, epoch, attempts, max_attempts, not_before, trigger, owner,"
        " cancel_requested, outcome, needs_operator, result, exit_status, created_at, updated_at, finished_at"
    )
    with Store(folder).transaction() as connection:
        connection.execute(f"CREATE TEMP TABLE ended AS {ended} ORDER BY made")
        connection.execute(
            f"INSERT INTO jobs ({names}) SELECT job_id, 'bench', 1, 'scope-' || number % 200,"
            """ '{"model_id": "Bench", "snapshot": {"path": "work/x", "sha256": "' || md5(made::VARCHAR) || '"}}',"""
            ' \'COMPLETED\', 1, 1, 5, made, \'timer\', \'{"host": "bench", "pid": 1, "boot_id": "b", "user": "u"}\','
            """ false, 'done', false, '{"sha256": "' || md5(job_id::VARCHAR) || '"}', 0, made, made, made FROM ended"""
        )
        connection.execute(
            "INSERT INTO steps SELECT job_id, seq, 'step' || seq, 'COMPLETED', 1, 1, made, made,"
            """ '{"path": "work/x", "sha256": "' || md5(job_id::VARCHAR || seq) || '"}', NULL"""
            " FROM ended, range(1, 5) AS steps(seq)"
        )
        connection.execute(
            "INSERT INTO events SELECT job_id, seq, 1, 'claim', 'PENDING', 'RUNNING', 'pid 1 on bench', made"
            " FROM ended, range(1, 4) AS events(seq)"
        )
        connection.execute(
            f"INSERT INTO jobs ({names}) SELECT ('ffffffff-ffff-7fff-8fff-' || lpad(to_hex(range), 12, '0'))::UUID,"
            " 'bench', 1, 'waits-' || range, '{}', 'PENDING', 0, 0, 5, TIMESTAMP '2999-01-01', 'operator', NULL, false,"
            f" NULL, false, NULL, NULL, now()::TIMESTAMP, now()::TIMESTAMP, NULL FROM range({_WAITING})"
        )
        connection.execute(
            f"INSERT INTO jobs ({names}) SELECT ('ffffffff-ffff-7fff-9fff-' || lpad(to_hex(range), 12, '0'))::UUID,"
            " 'bench', 1, 'failed-' || range, '{}', 'FAILED', 1, 5, 5, now()::TIMESTAMP, 'operator', NULL, false,"
            f" 'failed', false, NULL, 1, now()::TIMESTAMP, now()::TIMESTAMP, now()::TIMESTAMP FROM range({_WAITING})"
        )
        connection.execute("DROP TABLE ended")


def _cpu_seconds(command: list[str], fails_with: bytes | None) -> float:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SERVICECTL_")}
    ours.pop("PYTHONDONTWRITEBYTECODE", None)  # else compiling is measured, again in every round
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=ours, stdin=subprocess.DEVNULL, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if finished.returncode != (fails_with is not None) or (fails_with or b"") not in finished.stdout + finished.stderr:
        sys.stderr.buffer.write(finished.stderr)
        raise subprocess.CalledProcessError(finished.returncode, command)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _submit(folder: Path, what: str) -> None:
    from servicectl.jobs.model import NewJob, Result
    from servicectl.jobs.runner import Kind, Runner

    runner = Runner(folder, {"bench": Kind("bench", lambda _context: Result("done"))})
    job = runner.submit(NewJob("bench", "bench")).job
    if what == "submit":
        runner.table.request_cancel(job.job_id)
    else:
        assert runner.run(job.job_id).exit_status == 0


if __name__ == "__main__":
    _submit(Path(sys.argv[1]), sys.argv[2])
