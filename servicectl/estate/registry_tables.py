"""Our own two tables beside the registry: what drift checks found, and what a version looked like when trained.

The tables have no keys, and an insert-if-absent is no lock: two executions at one moment can leave a row twice.
So the guards keep repeats out in the ordinary case, and every reader takes rows of one key as one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import msgspec

from servicectl.errors import BadAnswer, BadData, IntegrityError
from servicectl.estate import values
from servicectl.estate.features import FeatureStore
from servicectl.sql import identifier, literal, literals

_ROWS_PER_STATEMENT = 500
_NOT_STORED = "run it again; if this repeats, hold the handler's clock against ours (`servicectl doctor`)"

_TABLES = (
    """CREATE TABLE IF NOT EXISTS drift_results (
        run_id TEXT, model_id TEXT, model_version TEXT, feature_name TEXT, verdict TEXT, service_status TEXT,
        psi DOUBLE, ks_stat DOUBLE, ks_p_value DOUBLE, kl_divergence DOUBLE, feature_rows BIGINT, reason TEXT,
        checked_at TIMESTAMP)""",
    # Beside the results, not in them: no service may ALTER a table while others hold the database open.
    """CREATE TABLE IF NOT EXISTS drift_evidence (
        run_id TEXT, model_id TEXT, feature_name TEXT, "trigger" TEXT, window_end TIMESTAMP, critical BOOLEAN,
        evidence TEXT)""",
    """CREATE TABLE IF NOT EXISTS model_baselines (
        model_id TEXT, version TEXT, baseline TEXT, sha256 TEXT, created_at TIMESTAMP)""",
)


@dataclass(frozen=True)
class DriftResult:
    """What one drift check says about one feature of one model: servicectl's `verdict` with its `reason`, beside
    Service C's own `service_status` and figures (None where it gave none). Times are naive UTC.

    The last four are None for what was recorded before they were: who started the check, the newest row of the feature,
    whether this look alone said CRITICAL, and what the verdict rests on, as JSON."""

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
    trigger: str | None = None
    window_end: datetime | None = None
    critical: bool | None = None
    evidence: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Look:
    """One scheduled check's word on a feature, whichever model it was asked for."""

    feature_name: str
    window_end: datetime
    critical: bool


_EVIDENCE_COLUMNS = ("trigger", "window_end", "critical", "evidence")
_RESULT_COLUMNS = tuple(field.name for field in fields(DriftResult) if field.name not in _EVIDENCE_COLUMNS)
_DOUBLES = ("psi", "ks_stat", "ks_p_value", "kl_divergence")
_RESULT_KINDS = {
    **dict.fromkeys(_RESULT_COLUMNS, values.text),
    **dict.fromkeys(_DOUBLES, values.double),
    "feature_rows": values.whole,
    "checked_at": values.moment,
    "trigger": values.text,
    "window_end": values.moment,
    "critical": values.text,
    "evidence": values.text,
}
_KEY = ("run_id", "model_id", "feature_name")


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
            some = results[start : start + _ROWS_PER_STATEMENT]
            self._record("drift_results", _RESULT_COLUMNS, [_result_row(one) for one in some])
            self._record("drift_evidence", (*_KEY, *_EVIDENCE_COLUMNS), [_evidence_row(one) for one in some])

    def drift_results(self, model_id: str, feature: str | None = None, limit: int = 100) -> tuple[DriftResult, ...]:
        """Given a model, and perhaps one feature of it, the newest results of each feature, newest first.

        `limit` is per feature; () before the first check.
        """
        if not self._has_relation("drift_results"):
            return ()
        beside = ", ".join(f"CAST(NULL AS VARCHAR) AS {identifier(name)}" for name in _EVIDENCE_COLUMNS)
        joined = ""
        if self._has_relation("drift_evidence"):  # not so in a store from before there was evidence
            beside = ", ".join(
                f"CAST(e.{identifier(name)} AS VARCHAR) AS {identifier(name)}" for name in _EVIDENCE_COLUMNS
            )
            joined = (
                f"LEFT JOIN (SELECT DISTINCT ON (run_id, feature_name) * FROM drift_evidence"
                f" WHERE model_id = {literal(model_id)}) AS e USING (run_id, feature_name)"
            )
        of_feature = "" if feature is None else f" AND feature_name = {literal(feature)}"
        finite = ", ".join(f"CASE WHEN isfinite(r.{name}) THEN r.{name} END AS {name}" for name in _DOUBLES)
        plain = ", ".join(f"r.{name}" for name in _RESULT_COLUMNS if name not in (*_DOUBLES, "checked_at"))
        told = self._queue.read(
            f"""SELECT {plain}, {finite}, CAST(r.checked_at AS VARCHAR) AS checked_at, {beside}
                FROM (SELECT *, row_number() OVER (PARTITION BY feature_name ORDER BY checked_at DESC, run_id) AS place
                      FROM (SELECT DISTINCT ON (run_id, feature_name) * FROM drift_results
                            WHERE model_id = {literal(model_id)}{of_feature})) AS r {joined}
                WHERE r.place <= {literal(limit)} ORDER BY r.checked_at DESC, r.run_id, r.feature_name"""
        )
        return tuple(_drift_result(row) for row in values.typed(told, _RESULT_KINDS))

    def scheduled_looks(self, features: Sequence[str], trigger: str = "timer") -> tuple[Look, ...]:
        """Given features, what checks started by `trigger` had Service C say of each, newest first.

        A check that measured nothing of a feature is left out: it says nothing either way.
        """
        if not features or not (self._has_relation("drift_results") and self._has_relation("drift_evidence")):
            return ()
        told = self._queue.read(
            f"""SELECT r.feature_name, CAST(max(e.window_end) AS VARCHAR) AS window_end,
                       CAST(bool_or(e.critical) AS VARCHAR) AS critical
                FROM drift_results AS r JOIN drift_evidence AS e USING (run_id, model_id, feature_name)
                WHERE r.feature_name IN {literals(features)} AND e."trigger" = {literal(trigger)}
                  AND r.service_status <> '' AND r.verdict NOT IN ('NOT_MEASURED', 'QUARANTINE')
                  AND e.window_end IS NOT NULL
                GROUP BY r.run_id, r.feature_name ORDER BY max(r.checked_at) DESC, r.run_id, r.feature_name"""
        )
        return tuple(
            Look(str(row["feature_name"]), datetime.fromisoformat(row["window_end"]), row["critical"] == "true")
            for row in told
        )

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

    def _record(self, table: str, names: Sequence[str], results: Sequence[Mapping[str, Any]]) -> None:
        columns = ", ".join(identifier(name) for name in names)
        typed = columns
        if "window_end" in names:  # a column of nothing but NULL would be one of numbers
            typed = typed.replace('"window_end"', 'CAST(CAST("window_end" AS VARCHAR) AS TIMESTAMP)')
        rows = ", ".join(literals(_storable(result[name]) for name in names) for result in results)
        keys = ", ".join(literals([result[name] for name in _KEY]) for result in results)

        def statement(in_time: str) -> str:
            return f"""INSERT INTO {table} ({columns}) SELECT {typed} FROM (VALUES {rows}) AS new({columns})
                WHERE {in_time} AND NOT EXISTS (
                    SELECT 1 FROM {table} AS old WHERE old.run_id = new.run_id
                    AND old.model_id = new.model_id AND old.feature_name = new.feature_name)"""

        def stored_keys() -> int:
            told = self._queue.read(
                f"""SELECT count(*) AS found FROM (SELECT DISTINCT run_id, model_id, feature_name FROM {table}
                    WHERE (run_id, model_id, feature_name) IN ({keys}))"""
            )
            return int(told[0]["found"])

        self._queue.change(statement, lambda: stored_keys() == len(results))
        if (found := stored_keys()) != len(results):
            raise BadAnswer(f"only {found} of {len(results)} drift results were stored", cure=_NOT_STORED)


def _storable(value: Any) -> Any:
    # An infinite divergence is a legal answer of Service C, and one infinity would blind every reader of the table.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _result_row(result: DriftResult) -> dict[str, Any]:
    return {name: getattr(result, name) for name in _RESULT_COLUMNS}


def _evidence_row(result: DriftResult) -> dict[str, Any]:
    told = None if result.evidence is None else msgspec.json.encode(result.evidence).decode()
    end = result.window_end.isoformat() if result.window_end else None
    row: dict[str, Any] = {name: getattr(result, name) for name in (*_KEY, *_EVIDENCE_COLUMNS)}
    return row | {"evidence": told, "window_end": end}


def _drift_result(told: dict[str, Any]) -> DriftResult:
    if told["checked_at"] is None:
        raise BadAnswer(f"drift_results row of run {told['run_id']!r}, feature {told['feature_name']!r}: no checked_at")
    kept = {
        "critical": None if told["critical"] is None else told["critical"] == "true",
        "evidence": None if told["evidence"] is None else msgspec.json.decode(told["evidence"]),
    }
    return DriftResult(**told | kept)
