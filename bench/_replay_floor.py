"""The factory floor of `bench replay`: a stream's rows so far, challengers trained on them, and the gate that judges them.

What is called is what the commands call in their child processes: `frame.split`, `window.choose_window`,
`fit.fitted_pipeline`, `judge.judge`. A challenger is trained once for all strategies that ask for the same one.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servicectl.training.frame import Rows
    from servicectl.training.spec import GateSpec, ProductFile, TrainingSpec, Verdict


@dataclass(frozen=True)
class Challenger:
    """`rows`: what it was trained on; `sample`: those of them that are kept. `seconds`: of processor time."""

    model: Any
    file: ProductFile
    rows: Rows
    sample: Rows
    seconds: float


@dataclass
class Stream:
    """`snapshot` holds all rows of a stream in order of time, as a retrain's snapshot would; `rows` are the same."""

    snapshot: Path
    rows: Rows
    spec: TrainingSpec
    folder: Path
    seconds: float = 0.0  # of processor time, that all training took
    cut_offs: dict[int, dict[str, float]] = field(default_factory=dict)
    _trained: dict[tuple[int, bytes], Challenger] = field(default_factory=dict)

    def trained(self, end: int, **changes: Any) -> Challenger:
        """Given how many rows there are so far and what to change in the spec, the challenger of a retrain."""
        import msgspec

        spec = msgspec.structs.replace(self.spec, **changes)
        key = (end, msgspec.json.encode(changes))
        if key not in self._trained:
            self._trained[key] = self._train(end, spec, len(self._trained))
            self.seconds += self._trained[key].seconds
        return self._trained[key]

    def judged(
        self, end: int, challenger: Challenger, champion: Challenger, gate: GateSpec, changes: Mapping[str, Any]
    ) -> Verdict:
        """The gate's verdict on the rows so far."""
        import msgspec

        from servicectl.training.floor import JudgeRequest
        from servicectl.training.frame import moment
        from servicectl.training.judge import judge

        request = JudgeRequest(
            spec=msgspec.structs.replace(self.spec, **changes),
            gate=gate,
            snapshot=str(self._so_far(end)),
            challenger=challenger.file,
            champion=champion.file,
            champion_seen_until=moment(champion.rows.times[-1]),
            challenger_seen_until=moment(challenger.rows.times[-1]),
        )
        return judge(request)

    def _train(self, end: int, spec: TrainingSpec, number: int) -> Challenger:
        from servicectl.training.baseline import sample_positions
        from servicectl.training.fit import PICKLE_PROTOCOL, fitted_pipeline, written
        from servicectl.training.frame import split
        from servicectl.training.window import choose_window, newest

        before = process_time()
        rows = split(self.rows.part(slice(0, end)), spec).training
        if spec.window_auto:
            rows = newest(rows, choose_window(rows, spec).share)
        model = fitted_pipeline(rows, spec)[0]
        file = written(self.folder / f"model-{number}.pkl", pickle.dumps(model, protocol=PICKLE_PROTOCOL))
        sample = rows.part(sample_positions(len(rows), spec.seed))
        return Challenger(model, file, rows, sample, process_time() - before)

    def _so_far(self, end: int) -> Path:
        import duckdb

        from servicectl.sql import literal

        path = self.folder / f"rows-{end}.parquet"
        if not path.exists():
            with duckdb.connect(config={"threads": 1}) as connection:
                query = f"SELECT * FROM read_parquet({literal(str(self.snapshot))}) LIMIT {end}"
                connection.execute(f"COPY ({query}) TO {literal(str(path))} (FORMAT parquet)")
        return path


def opened(path: Path, moment: str, label: str, task: str, folder: Path) -> Stream:
    """A Parquet file as a stream. All other columns are features: numbers as numbers, text of at most 50 values as
    categories."""
    import duckdb

    from servicectl.sql import identifier, literal
    from servicectl.training.frame import read
    from servicectl.training.source import snapshot_query
    from servicectl.training.spec import Source, TrainingSpec

    own = folder / path.stem
    own.mkdir()
    with duckdb.connect(config={"threads": 1}) as connection:
        table = f"read_parquet({literal(os.fspath(path))})"
        columns = connection.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()
        features, categorical = [], []
        for name, kind, *_ in columns:
            if name in (moment, label, "entity_id") or kind.startswith(("TIMESTAMP", "DATE", "TIME")):
                continue
            if kind == "VARCHAR":
                counted = connection.execute(f"SELECT count(DISTINCT {identifier(name)}) FROM {table}").fetchone()
                if counted is None or counted[0] > 50:
                    continue
                categorical.append(name)
            features.append(name)
        entity = "entity_id" if any(name == "entity_id" for name, *_ in columns) else "'all'"
        spec = TrainingSpec(
            model_id=path.stem,
            task="regression" if task == "regression" else "classification",
            label=label,
            features=tuple(features),
            categorical=tuple(categorical),
            estimator="sklearn.ensemble.HistGradientBoosting" + ("Regressor" if task == "regression" else "Classifier"),
            params={"max_iter": 30},
            metric="r2" if task == "regression" else "accuracy",
        )
        query = f"SELECT *{' EXCLUDE (entity_id)' if entity == 'entity_id' else ''}, {entity} AS entity_id FROM {table}"
        source = Source(kind="sql", query=query, time_column=moment)
        snapshot = own / "snapshot.parquet"
        connection.execute(f"COPY ({snapshot_query(spec, source)}) TO {literal(str(snapshot))} (FORMAT parquet)")
    return Stream(snapshot, read(snapshot, spec), spec, own)
