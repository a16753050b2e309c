"""Our own two tables beside the registry: what drift checks found, and what a version looked like when trained.

The tables have no keys, and an insert-if-absent is no lock: two executions at one moment can leave a row twice.
So the guards keep repeats out in the ordinary case, and every reader takes rows of one key as one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from servicectl.errors import BadAnswer, BadData, IntegrityError
from servicectl.estate import values
from servicectl.estate.features import FeatureStore
from servicectl.sql import literal, literals

_ROWS_PER_STATEMENT = 500
_NOT_STORED = "run it again; if this repeats, hold the handler's clock against ours (`servicectl doctor`)"

_TABLES = (
    """CREATE TABLE IF NOT EXISTS drift_results (
        run_id TEXT, model_id TEXT, model_version TEXT, feature_name TEXT, verdict TEXT, service_status TEXT,
        psi DOUBLE, ks_stat DOUBLE, ks_p_value DOUBLE, kl_divergence DOUBLE, feature_rows BIGINT, reason TEXT,
        checked_at TIMESTAMP)""",
    """CREATE TABLE IF NOT EXISTS model_baselines (
        model_id TEXT, version TEXT, baseline TEXT, sha256 TEXT, created_at TIMESTAMP)""",
)


@dataclass(frozen=True)
class DriftResult:
    """What one drift check says about one feature of one model: servicectl's `verdict` with its `reason`, beside
    Service C's own `service_status` and figures (None where it gave none). `checked_at` is naive UTC."""

    run_id: str
    model_id: str
    model_version: str
    feature_name: str
    verdict: str
    service_status: str | None
    psi: float | None
    ks_stat: float | None
    ks_p_value: float | None
    kl_divergence: float | None
    feature_rows: int | None
    reason: str
    checked_at: datetime


_RESULT_COLUMNS = tuple(field.name for field in fields(DriftResult))
_DOUBLES = ("psi", "ks_stat", "ks_p_value", "kl_divergence")
_RESULT_KINDS = {
    **dict.fromkeys(_RESULT_COLUMNS, values.text),
    **dict.fromkeys(_DOUBLES, values.double),
    "feature_rows": values.whole,
    "checked_at": values.moment,
}


class OwnTables(FeatureStore):
    """The drift log and the baselines, written and read through the handler's read queue."""

    def ensure_tables(self) -> None:
        """Create our tables where they are absent."""
        for statement in _TABLES:
            self._queue.run(statement)

    def record_drift_results(self, results: Sequence[DriftResult]) -> None:
        """Store each result unless its (run, model, feature) is stored already, and read back that all are there.

        Figures that are not finite are stored as NULL. Raises BadData if two results have one key.
        """
        keys = [(result.run_id, result.model_id, result.feature_name) for result in results]
        if len(set(keys)) < len(keys):
            raise BadData("two drift results of one run have the same model and feature")
        for start in range(0, len(results), _ROWS_PER_STATEMENT):
            self._record(results[start : start + _ROWS_PER_STATEMENT])

    def drift_results(self, model_id: str, feature: str | None = None, limit: int = 100) -> tuple[DriftResult, ...]:
        """Given a model, and perhaps one feature of it, its newest results first; () before the first check."""
        if not self._has_relation("drift_results"):
            return ()
        of_feature = "" if feature is None else f" AND feature_name = {literal(feature)}"
        finite = ", ".join(f"CASE WHEN isfinite(r.{name}) THEN r.{name} END AS {name}" for name in _DOUBLES)
        plain = ", ".join(f"r.{name}" for name in _RESULT_COLUMNS if name not in (*_DOUBLES, "checked_at"))
        told = self._queue.read(
            f"""SELECT {plain}, {finite}, CAST(r.checked_at AS VARCHAR) AS checked_at
                FROM (SELECT DISTINCT ON (run_id, feature_name) * FROM drift_results
                      WHERE model_id = {literal(model_id)}{of_feature}) AS r
                ORDER BY r.checked_at DESC, r.run_id, r.feature_name LIMIT {literal(limit)}"""
        )
        return tuple(_drift_result(row) for row in values.typed(told, _RESULT_KINDS))

    def store_baseline(self, model_id: str, version: str, baseline_json: str, sha256: str) -> None:
        """Store the baseline statistics of one version unless they are stored already, and read their digest back.

        `sha256` is the hex digest of the text's UTF-8 bytes. Raises IntegrityError if it is not, or if the version
        has another baseline already.
        """
        if hashlib.sha256(baseline_json.encode()).hexdigest() != sha256:
            raise IntegrityError(f"the baseline of {model_id} {version} does not have the digest {sha256}")
        of_version = f"model_id = {literal(model_id)} AND version = {literal(version)}"
        created_at = literal(self._queue.clock.now())
        self._queue.change(
            lambda in_time: (
                f"INSERT INTO model_baselines (model_id, version, baseline, sha256, created_at) "
                f"SELECT {literals([model_id, version, baseline_json, sha256])[1:-1]}, {created_at} "
                f"WHERE {in_time} AND NOT EXISTS (SELECT 1 FROM model_baselines WHERE {of_version})"
            ),
            lambda: self._baseline_digests(of_version) == {sha256},
        )
        match self._baseline_digests(of_version):
            case digests if digests == {sha256}:
                return
            case digests if not digests:
                raise BadAnswer(f"the baseline of {model_id} {version} was not stored", cure=_NOT_STORED)
        raise IntegrityError(
            f"{model_id} {version} has another baseline already in model_baselines",
            cure="that version was trained twice; publish under the next version",
        )

    def baseline(self, model_id: str, version: str) -> str | None:
        """The baseline JSON of one version, None if there is none. Raises IntegrityError if it is not its digest's."""
        if not self._has_relation("model_baselines"):
            return None
        told = self._queue.read(
            f"""SELECT baseline, sha256 FROM model_baselines
                WHERE model_id = {literal(model_id)} AND version = {literal(version)} LIMIT 1"""
        )
        if not told:
            return None
        text = str(told[0]["baseline"])
        if hashlib.sha256(text.encode()).hexdigest() != told[0]["sha256"]:
            raise IntegrityError(f"the stored baseline of {model_id} {version} does not match its digest")
        return text

    def _baseline_digests(self, of_version: str) -> set[str]:
        # Over the text itself: what counts is what a reader will get.
        told = self._queue.read(f"SELECT DISTINCT sha256(baseline) AS digest FROM model_baselines WHERE {of_version}")
        return {row["digest"] for row in told}

    def _record(self, results: Sequence[DriftResult]) -> None:
        columns = ", ".join(_RESULT_COLUMNS)
        rows = ", ".join(literals(_storable(getattr(result, name)) for name in _RESULT_COLUMNS) for result in results)
        keys = ", ".join(literals([result.run_id, result.model_id, result.feature_name]) for result in results)

        def statement(in_time: str) -> str:
            return f"""INSERT INTO drift_results ({columns}) SELECT {columns} FROM (VALUES {rows}) AS new({columns})
                WHERE {in_time} AND NOT EXISTS (
                    SELECT 1 FROM drift_results AS old WHERE old.run_id = new.run_id
                    AND old.model_id = new.model_id AND old.feature_name = new.feature_name)"""

        def stored_keys() -> int:
            told = self._queue.read(
                f"""SELECT count(*) AS found FROM (SELECT DISTINCT run_id, model_id, feature_name FROM drift_results
                    WHERE (run_id, model_id, feature_name) IN ({keys}))"""
            )
            return int(told[0]["found"])

        self._queue.change(statement, lambda: stored_keys() == len(results))
        if (found := stored_keys()) != len(results):
            raise BadAnswer(f"only {found} of {len(results)} drift results were stored", cure=_NOT_STORED)


def _storable(value: Any) -> Any:
    # An infinite divergence is a legal answer of Service C, and one infinity would blind every reader of the table.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drift_result(told: dict[str, Any]) -> DriftResult:
    if told["checked_at"] is None:
        raise BadAnswer(f"drift_results row of run {told['run_id']!r}, feature {told['feature_name']!r}: no checked_at")
    return DriftResult(**told)
