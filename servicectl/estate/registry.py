"""The model registry: the table `model_metadata`, changed by single statements through the handler's read queue.

Registry rows are a projection of the artifact store's pointer. Every change here is one statement, guarded by what
it expects to find and by a deadline, and read back: run twice, late, or beside another one, it does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from servicectl.errors import BadAnswer, BadData, Superseded
from servicectl.estate.queue import HANDLER
from servicectl.estate.registry_rows import (
    COLUMNS,
    DEPRECATED,
    PRODUCTION,
    STAGING,
    Feature,
    ModelRow,
    model_row,
    redis_metadata,
)
from servicectl.estate.registry_tables import DriftResult, OwnTables
from servicectl.sql import features_literal, literal, literals

__all__ = ["DEPRECATED", "PRODUCTION", "STAGING", "DriftResult", "Feature", "ModelRow", "Registry", "redis_metadata"]

_CLOCKS = "run the command again; if this repeats, hold the handler's clock against ours (`servicectl doctor`)"


class Registry(OwnTables):
    """Models and their versions, our own tables and the feature store, through one queue.

    Beside the errors named, every method raises those of HandlerQueue.
    """

    def production(self, on_bad: Callable[[BadAnswer], None] | None = None) -> tuple[ModelRow, ...]:
        """Every row in production, by model. A row out of shape raises BadAnswer, or is handed to `on_bad` and left
        out, so that one model's bad row need not hide the others."""
        return self._select(f"status = {literal(PRODUCTION)}", on_bad)

    def rows(self, model_id: str) -> tuple[ModelRow, ...]:
        """Every row of one model, whatever its status, oldest first."""
        return self._select(f"model_id = {literal(model_id)}", None)

    def insert_staging(self, row: ModelRow) -> ModelRow:
        """Add a version with status `staging`, unless it is there, and return its row as it is read back.

        A row that is there already, also one that was switched to production since, must describe the same
        version. Raises BadAnswer if it does not, or if several different rows claim the version, and BadData for a
        feature name with a quote, which Service C could never measure.
        """
        if quoted := [feature.name for feature in row.expected_features if "'" in feature.name]:
            raise BadData(
                f"feature {quoted[0]!r} of {row.model_id} has a quote in its name: Service C cannot ask for its rows",
                cure="rename the feature",
            )
        with self._exclusively(row.model_id):
            return self._insert_staging(row)

    def _insert_staging(self, row: ModelRow) -> ModelRow:
        wanted = replace(row, status=STAGING, created_at=row.created_at or self._queue.clock.now())
        of_version = _of_version(row.model_id, row.version)
        self._queue.change(
            lambda in_time: (
                f"INSERT INTO model_metadata (model_id, artifact_type, version, trained_date, model_drift_score, "
                f"status, azure_location, expected_features, created_at) SELECT {_row_literals(wanted)} "
                f"WHERE {in_time} AND NOT EXISTS (SELECT 1 FROM model_metadata WHERE {of_version})"
            ),
            lambda: bool(self._select(of_version, None)),
        )
        found = self._select(of_version, None)
        if len(found) > 1 and all(_is_repeat(one, wanted) for one in found):
            found = self._without_repeats(of_version)
        match found:
            case (only,) if only.described() == row.described():
                return only
            case (_,):
                raise BadAnswer(
                    f"model_metadata already has {row.model_id} {row.version}, and it describes another model",
                    cure="publish under the next version",
                )
            case ():
                raise BadAnswer(f"{HANDLER} did not store {row.model_id} {row.version}", cure=_CLOCKS)
        raise BadAnswer(
            f"model_metadata has {len(found)} rows for {row.model_id} {row.version}; exactly one is meant to be there",
            cure="delete the wrong ones through the read queue, or publish under the next version",
        )

    def switch_production(self, model_id: str, version: str, expected_current: str | None) -> None:
        """Make `version` the model's only production row, in one statement over all its rows.

        `expected_current` is the version that is in production now, None for none. Returns also if the switch has
        happened already. Raises Superseded if another version is in production, and BadAnswer if the new version
        does not have exactly one row.
        """
        with self._exclusively(model_id):
            self._switch_production(model_id, version, expected_current)

    def _switch_production(self, model_id: str, version: str, expected_current: str | None) -> None:
        in_production = f"model_id = {literal(model_id)} AND status = {literal(PRODUCTION)}"
        expected = (
            f"NOT EXISTS (SELECT 1 FROM model_metadata WHERE {in_production})"
            if expected_current is None
            else f"EXISTS (SELECT 1 FROM model_metadata WHERE {in_production} AND version = {literal(expected_current)})"
        )

        # Two first publishes meet in no production row; so they touch all of the model's, and conflict in the first.
        touched = "TRUE" if expected_current is None else f"({in_production} OR version = {literal(version)})"

        def statement(in_time: str) -> str:
            # Where the lock fails (a Redis that lost it), expected_features assigned to itself makes the engine replace
            # whole rows: a plain change of status beside a change of drift scores raises no conflict there, and leaves
            # two rows in production.
            return f"""UPDATE model_metadata SET expected_features = expected_features, status = CASE
                    WHEN version = {literal(version)} THEN {literal(PRODUCTION)}
                    WHEN status = {literal(PRODUCTION)} THEN {literal(DEPRECATED)} ELSE status END
                WHERE model_id = {literal(model_id)} AND {touched} AND {in_time} AND {expected}
                AND (SELECT count(*) FROM model_metadata WHERE {_of_version(model_id, version)}) = 1"""

        def current() -> list[str]:
            return [row.version for row in self._select(in_production, None)]

        self._queue.change(statement, lambda: current() == [version])
        found = current()
        if found == [version]:
            return
        candidates = len(self._select(_of_version(model_id, version), None))
        if candidates != 1:
            raise BadAnswer(
                f"{model_id} {version} has {candidates} rows in model_metadata; a switch needs exactly one",
                cure=f"look at them: SELECT * FROM model_metadata WHERE {_of_version(model_id, version)}",
            )
        if (expected_current in found) if expected_current is not None else not found:
            raise BadAnswer(f"{HANDLER} did not switch {model_id} to {version}", cure=_CLOCKS)
        raise Superseded(
            f"{model_id} has {' and '.join(found) or 'nothing'} in production, not {expected_current or 'nothing'}: "
            f"{version} was not switched in",
            cure=f"`servicectl models` shows what is in production; publish {model_id} again if it is still wanted",
        )

    def write_drift_scores(self, model_id: str, version: str, scores: Mapping[str, float]) -> None:
        """Set the drift_score of the named features in the production row; every other feature keeps its own.

        Raises BadData for a score that is not finite or a feature the model does not have, Superseded if that
        version is not in production.
        """
        if scores:
            with self._exclusively(model_id):
                self._write_drift_scores(model_id, version, scores)

    def _write_drift_scores(self, model_id: str, version: str, scores: Mapping[str, float]) -> None:
        of_row = f"{_of_version(model_id, version)} AND status = {literal(PRODUCTION)}"
        known = self._scores_of(of_row, model_id, version)
        if strangers := sorted(scores.keys() - known.keys()):
            raise BadData(f"{model_id} {version} has no feature {', '.join(map(repr, strangers))}")
        wanted = {name: float(score) for name, score in scores.items()}
        cases = " ".join(f"WHEN {literal(name)} THEN {literal(score)}" for name, score in wanted.items())

        def statement(in_time: str) -> str:
            return f"""UPDATE model_metadata SET expected_features = [
                    {{'index': f."index", 'name': f."name", 'type': f."type",
                      'drift_score': CASE f."name" {cases} ELSE f."drift_score" END}} for f in expected_features]
                WHERE {of_row} AND {in_time}"""

        def written() -> bool:
            stored = self._scores_of(of_row, model_id, version)
            return all(stored.get(name) == score for name, score in wanted.items())

        self._queue.change(statement, written)
        if not written():
            raise BadAnswer(f"{HANDLER} did not store the drift scores of {model_id} {version}", cure=_CLOCKS)

    def drop_staging(self, model_id: str, version: str) -> None:
        """Delete the row of a version that never came into production. Returns also if there is none."""
        of_version = f"{_of_version(model_id, version)} AND status = {literal(STAGING)}"
        with self._exclusively(model_id):
            self._queue.change(
                lambda in_time: f"DELETE FROM model_metadata WHERE {of_version} AND {in_time}",
                lambda: not self._select(of_version, None),
            )

    def _exclusively(self, model_id: str) -> AbstractContextManager[None]:
        return self._queue.exclusively(f"registry:{model_id}")

    def _scores_of(self, of_row: str, model_id: str, version: str) -> dict[str, float | None]:
        found = self._select(of_row, None)
        if not found:
            raise Superseded(f"{model_id} {version} is not in production; its drift scores are not written")
        return {feature.name: feature.drift_score for row in found for feature in row.expected_features}

    def _select(self, condition: str, on_bad: Callable[[BadAnswer], None] | None) -> tuple[ModelRow, ...]:
        found = []
        for told in self._queue.read(
            f"SELECT {COLUMNS} FROM model_metadata WHERE {condition} ORDER BY model_id, model_metadata.created_at"
        ):
            try:
                found.append(model_row(told))
            except BadAnswer as bad:
                if on_bad is None:
                    raise
                on_bad(bad)
        return tuple(found)

    def _without_repeats(self, of_version: str) -> tuple[ModelRow, ...]:
        """Two executions of one guarded insert at the same moment: keep the first row, delete its repeats."""
        self._queue.change(
            lambda in_time: (
                f"DELETE FROM model_metadata WHERE {of_version} AND status = {literal(STAGING)} AND {in_time} "
                f"AND rowid > (SELECT min(rowid) FROM model_metadata WHERE {of_version})"
            ),
            lambda: len(self._select(of_version, None)) == 1,
        )
        return self._select(of_version, None)


def _of_version(model_id: str, version: str) -> str:
    return f"model_id = {literal(model_id)} AND version = {literal(version)}"


def _is_repeat(one: ModelRow, wanted: ModelRow) -> bool:
    return one.status == STAGING and one.described() == wanted.described()


def _row_literals(row: ModelRow) -> str:
    features = ((feature.index, feature.name, feature.type, feature.drift_score) for feature in row.expected_features)
    before = literals(
        [row.model_id, row.artifact_type, row.version, row.trained_date, row.model_drift_score, row.status]
    )[1:-1]
    return f"{before}, {literal(row.azure_location)}, {features_literal(features)}, {literal(row.created_at)}"
