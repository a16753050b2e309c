"""The programs that `bench steps` compares: each does six steps that do nothing, once, in a process of its own.

`python -m bench._step_programs NAME FOLDER`. As little as can be is imported here: it would be measured. FOLDER keeps
what a program stores from run to run, as a real one does.
"""

from __future__ import annotations

import os
import sys
from typing import Any

STEPS = tuple(f"step{number}" for number in range(1, 7))


def servicectl(folder: str) -> None:
    from pathlib import Path

    from servicectl.jobs.context import JobContext
    from servicectl.jobs.model import NewJob, Result
    from servicectl.jobs.runner import Kind, Runner

    def act(context: JobContext) -> Result:
        for name in STEPS:
            context.step(name, int, int)
        return Result("done")

    runner = Runner(Path(folder), {"bench": Kind("bench", act)})
    ran = runner.run(runner.submit(NewJob("bench", "bench")).job.job_id)
    assert ran.exit_status == 0


def bare(folder: str) -> None:
    """The same rows by hand: no lock, no reading, no guard; the file is opened once for each needed commit.

    Needed are eight: made, claimed with the first step begun, five times a step ended and the next begun, and the last
    step ended with the job.
    """
    import uuid
    from datetime import UTC, datetime

    import duckdb

    settings = {"threads": "1", "memory_limit": "256MB", "storage_compatibility_version": "v1.4.0"}
    job, sequence = str(uuid.uuid4()), 0

    def now() -> datetime:
        return datetime.now(UTC).replace(tzinfo=None)

    def commit(*statements: tuple[str, list[Any]]) -> None:
        connection = duckdb.connect(os.path.join(folder, "servicectl.duckdb"), config=settings)  # noqa: PTH118 -- pathlib would be measured
        connection.execute("BEGIN")
        for statement, values in statements:
            connection.execute(statement, values)
        connection.execute("COMMIT")
        connection.close()

    def event(edge: str, from_state: str | None, to_state: str) -> tuple[str, list[Any]]:
        nonlocal sequence
        sequence += 1
        return "INSERT INTO events VALUES (?, ?, 1, ?, ?, ?, '', ?)", [job, sequence, edge, from_state, to_state, now()]

    def moved(state: str) -> tuple[str, list[Any]]:
        return "UPDATE jobs SET state = ?, epoch = 1, updated_at = ? WHERE job_id = ?", [state, now(), job]

    def begun(number: int) -> tuple[str, list[Any]]:
        return (
            "INSERT INTO steps (job_id, seq, name, state, epoch, attempts, started_at) VALUES (?, ?, ?, 'RUNNING', 1, 1, ?)",
            [job, number, STEPS[number - 1], now()],
        )

    def ended(number: int) -> tuple[str, list[Any]]:
        return (
            "UPDATE steps SET state = 'COMPLETED', output = '0', finished_at = ? WHERE job_id = ? AND seq = ?",
            [now(), job, number],
        )

    insert = (
        "INSERT INTO jobs (job_id, kind, step_schema, scope, spec, state, epoch, attempts, max_attempts, not_before,"
        " trigger, cancel_requested, needs_operator, created_at, updated_at)"
        " VALUES (?, 'bench', 1, 'bench', '{}', 'PENDING', 0, 0, 5, ?, 'bench', false, false, ?, ?)"
    )
    made = (insert, [job, now(), now(), now()])
    commit(made, event("submit", None, "PENDING"))
    commit(moved("RUNNING"), event("claim", "PENDING", "RUNNING"), begun(1))
    for number in range(1, len(STEPS)):
        commit(ended(number), begun(number + 1))
    commit(ended(len(STEPS)), moved("COMPLETED"), event("complete", "RUNNING", "COMPLETED"))


def _peer(name: str) -> Any:
    import importlib

    return importlib.import_module(name)


def _nothing(_name: str) -> int:
    return 0


def dbos(folder: str) -> None:
    peer = _peer("dbos").DBOS
    peer(
        config={
            "name": "bench",
            "system_database_url": f"sqlite:///{folder}/dbos.sqlite",
            "run_admin_server": False,
            "log_level": "ERROR",
        }
    )

    step = peer.step()(_nothing)

    def flow() -> None:
        for name in STEPS:
            step(name)

    durable = peer.workflow()(flow)
    peer.launch()
    durable()
    peer.destroy()


def luigi(folder: str) -> None:
    import uuid

    peer = _peer("luigi")
    run = f"{folder}/{uuid.uuid4()}"

    def required(self: Any) -> list[Any]:
        return [Step(number=self.number - 1)] if self.number > 1 else []

    def target(self: Any) -> Any:
        return peer.LocalTarget(f"{run}/{self.number}")

    def written(self: Any) -> None:
        with self.output().open("w") as file:
            file.write("0")

    members = {"number": peer.IntParameter(), "requires": required, "output": target, "run": written}
    Step: Any = type(peer.Task)("Step", (peer.Task,), members)  # noqa: N806 -- a class
    assert peer.build([Step(number=len(STEPS))], local_scheduler=True, log_level="ERROR")


_METAFLOW = """
from metaflow import FlowSpec, step

class Bench(FlowSpec):
    @step
    def start(self):
        self.next(self.step2)
    @step
    def step2(self):
        self.next(self.step3)
    @step
    def step3(self):
        self.next(self.step4)
    @step
    def step4(self):
        self.next(self.step5)
    @step
    def step5(self):
        self.next(self.end)
    @step
    def end(self):
        pass

if __name__ == "__main__":
    Bench()
"""


def metaflow(folder: str) -> None:
    flow = f"{folder}/flow.py"
    with open(flow, "w") as file:  # noqa: PTH123 -- pathlib would be measured
        file.write(_METAFLOW)
    os.environ |= {"METAFLOW_DATASTORE_SYSROOT_LOCAL": folder, "METAFLOW_USER": "bench"}
    os.execv(sys.executable, [sys.executable, flow, "--quiet", "--no-pylint", "run"])


def prefect(folder: str) -> None:
    os.environ |= {
        "PREFECT_HOME": folder,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # on a busy machine the default is too short
        "DO_NOT_TRACK": "1",
    }
    peer = _peer("prefect")
    step = peer.task(_nothing)

    def flow() -> None:
        for name in STEPS:
            step(name)

    peer.flow(flow)()


PROGRAMS = {
    "servicectl": servicectl,
    "bare": bare,
    "dbos": dbos,
    "luigi": luigi,
    "metaflow": metaflow,
    "prefect": prefect,
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](sys.argv[2])
