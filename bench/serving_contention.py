"""Serving first: the 99th percentile of `RunInference` during a training against that of an idle machine.

The serving worker in small answers one request after the other over gRPC, while beside it

    idle       nothing runs
    limited    a training runs within the limits of the shipped units: one thread, `nice` 10, a fifth of the usual
               CPU weight where this user may make a control group, and training.serving_first
    unlimited  the same training with a thread for every core and none of these limits

Rounds of the three are interleaved; each round's percentile is held against the idle one of the same round. What trains
is scikit-learn's gradient boosting on 20 features, again and again until the round's requests are answered; in blocks
(the default for what does not fit memory) with `--streaming`.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

LIMITS = {"p99_ratio_limited": 1.5}
_MODEL = "Contention"
_CPU_GROUPS = Path("/sys/fs/cgroup/cpu")
_UNITS_NICE, _UNITS_WEIGHT = 10, 20  # Nice= and CPUWeight= of servicectl-retrain.service
_USUAL_SHARES = 1024
_WARM_REQUESTS = 50
_LEAST_TRAINING_S = 1.0  # so that a training is in its fit before anything is measured


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--streaming", action="store_true", help="train in blocks instead of in memory")


def run(quick: bool, streaming: bool = False) -> dict[str, float]:
    """Medians over the rounds. Raises ServicectlError where a part does not start."""
    rounds, requests = (2, 300) if quick else (5, 1500)
    ratios: dict[str, list[float]] = {"limited": [], "unlimited": []}
    trained = dict.fromkeys(ratios, 0.0)
    idle_ms = []
    with tempfile.TemporaryDirectory(prefix="servicectl-bench-") as scratch, ExitStack() as parts:
        folder = Path(scratch)
        _snapshot(folder / "snapshot.parquet", 200_000 if quick else 1_000_000)
        ask = parts.enter_context(_serving(folder))
        for _ in range(rounds):
            idle = _p99_ms(ask, requests)
            idle_ms.append(idle)
            for name, times in ratios.items():
                with _training(folder, limited=name == "limited", streaming=streaming) as counted:
                    times.append(_p99_ms(ask, requests) / idle)
                    trained[name] += counted()
    print(
        f"idle p99 {median(idle_ms):.2f} ms; trainings begun beside: limited {trained['limited']:.0f}, "
        f"unlimited {trained['unlimited']:.0f}; control group: {'yes' if _may_group() else 'no'}",
        file=sys.stderr,
    )
    return {f"p99_ratio_{name}": round(median(times), 3) for name, times in ratios.items()}


def _snapshot(path: Path, rows: int) -> None:
    from bench.streaming import make

    make(path, rows)


@contextmanager
def _serving(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A model in Service B's worker, and a client process that measures on request."""
    import numpy as np
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    from bench.streaming import FEATURES
    from servicectl.estate.serving_keys import Projection, ServingKeys
    from servicectl.files import sha256_of
    from servicectl.miniature.estate import MiniatureEstate

    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(500, len(FEATURES))), columns=list(FEATURES))
    columns = ColumnTransformer([("all", StandardScaler(), list(FEATURES))])
    model = Pipeline([("columns", columns), ("model", LogisticRegression())]).fit(frame, frame["f0"] > 0)
    (folder / "model.pkl").write_bytes(pickle.dumps(model))
    with MiniatureEstate(folder / "estate") as estate:
        features = [{"index": index, "name": name, "type": "float"} for index, name in enumerate(FEATURES)]
        with ServingKeys(estate.redis_url) as keys:
            keys.project(
                Projection(
                    model_id=_MODEL,
                    generation=1,
                    version="1.0.0",
                    sha256=sha256_of(folder / "model.pkl"),
                    name=f"Model_{_MODEL}/Model_{_MODEL}_1.0.0.pkl",
                    job_id=None,
                    metadata={
                        "model_id": _MODEL,
                        "artifact_type": "pkl",
                        "version": "1.0.0",
                        "status": "production",
                        "expected_features": features,
                        "azure_location": f"Model_{_MODEL}/",
                        "trained_date": "2026-01-01",
                        "model_drift_score": 0.0,
                        "created_at": "2026-01-01T00:00:00Z",
                    },
                    artifacts={"pkl": (folder / "model.pkl").read_bytes()},
                )
            )
        command = [sys.executable, "-m", "bench.serving_contention", "ask", estate.serving_address]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            try:
                _p99_ms(client, _WARM_REQUESTS)
                yield client
            finally:
                client.kill()


def _p99_ms(client: subprocess.Popen[str], requests: int) -> float:
    assert client.stdin is not None
    assert client.stdout is not None
    print(requests, file=client.stdin, flush=True)
    return float(client.stdout.readline())


@contextmanager
def _training(folder: Path, *, limited: bool, streaming: bool) -> Iterator[Callable[[], float]]:
    """A training that goes on for as long as the block; gives a function that counts those begun."""
    threads = 1 if limited else os.cpu_count() or 1
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    counter = folder / "trainings"
    counter.unlink(missing_ok=True)
    given = {"folder": str(folder), "threads": threads, "limited": limited, "streaming": streaming}
    command = [sys.executable, "-m", "bench.serving_contention", "train", json.dumps(given)]
    with _group() if limited else _no_group() as group:
        process = subprocess.Popen(
            command,
            env=environment,
            start_new_session=True,
            preexec_fn=(lambda: _limit(group)) if limited else None,  # noqa: PLW1509 -- no thread is alive here
        )
        try:
            while not counter.exists():
                time.sleep(0.05)
            time.sleep(_LEAST_TRAINING_S)
            yield lambda: float(len(counter.read_bytes()))
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def _limit(group: Path | None) -> None:
    os.nice(_UNITS_NICE)
    if group is not None:
        (group / "tasks").write_text(str(os.getpid()))


def _may_group() -> bool:
    return os.access(_CPU_GROUPS, os.W_OK) and (_CPU_GROUPS / "cpu.shares").exists()


@contextmanager
def _group() -> Iterator[Path | None]:
    if not _may_group():
        yield None
        return
    group = _CPU_GROUPS / f"servicectl-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cpu.shares").write_text(str(_USUAL_SHARES * _UNITS_WEIGHT // 100))
        yield group
    finally:
        while (group / "tasks").read_text():  # a fit that was killed is not gone at once
            time.sleep(0.01)
        group.rmdir()


@contextmanager
def _no_group() -> Iterator[None]:
    yield None


def _ask(address: str) -> None:
    import numpy as np

    from bench.streaming import FEATURES
    from servicectl.estate.serving import ServingClient

    row = dict.fromkeys(FEATURES, 0.5)
    with ServingClient(address, 30.0) as client:
        for line in sys.stdin:
            seconds = []
            for _ in range(int(line)):
                started = time.perf_counter()
                client.predict(_MODEL, row)
                seconds.append(time.perf_counter() - started)
            print(float(np.percentile(seconds, 99)) * 1000, flush=True)


def _train(given: dict[str, object]) -> None:
    from bench.streaming import spec
    from servicectl.training import floor

    folder = Path(str(given["folder"]))
    streaming = bool(given["streaming"])
    estimator = "sklearn.linear_model.SGDClassifier" if streaming else "sklearn.ensemble.HistGradientBoostingClassifier"
    chosen = spec(
        estimator=estimator,
        training="streaming" if streaming else "memory",
        threads=given["threads"],
        serving_first=given["limited"],
        passes=20 if streaming else None,
    )
    (folder / "work").mkdir(exist_ok=True)
    while True:
        with (folder / "trainings").open("ab") as counter:
            counter.write(b".")
        floor.train(chosen, folder / "snapshot.parquet", folder / "work")


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        _ask(sys.argv[2])
    else:
        _train(json.loads(sys.argv[2]))
