"""Verdicts, models and checks as a reader sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from servicectl.cli.job_views import age
from servicectl.cli.screen import Cell, Screen, Styled, word

if TYPE_CHECKING:
    from servicectl.actions.doctor import Check
    from servicectl.actions.history import Change
    from servicectl.actions.models import ModelState
    from servicectl.actions.planning import Plan


def figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def print_decisions(screen: Screen, decisions: Sequence[Mapping[str, Any]]) -> None:
    rows: list[list[Cell]] = []
    for one in decisions:
        reason = "" if one["verdict"] == one["status"] else one["reason"]
        numbers = figure(one["psi"]), figure(one["ks_stat"])
        rows.append([one["model_id"], one["feature"], *numbers, one["status"] or "-", word(one["verdict"]), reason])
    screen.table(["model", "feature", "PSI", "KS", "Service C", "verdict", "reason"], rows, right=["PSI", "KS"])


def print_verdict(screen: Screen, model_id: str, outcome: str, told: Mapping[str, Any]) -> None:
    verdict = told["verdict"]
    screen.line(f"{model_id}: ", Styled(outcome, "bold"), f": {verdict['reason']}")
    champion, challenger = verdict.get("champion") or {}, verdict["challenger"]
    rows = [
        [f"  {metric}{' *' if metric == verdict['metric'] else ''}", figure(champion.get(metric)), figure(value)]
        for metric, value in challenger.items()
    ]
    screen.table(["  metric", "champion", "challenger"], rows, right=["champion", "challenger"])
    held = f"{verdict['rows']:,} newest rows, " + ("seen by neither" if champion else "not trained on")
    screen.line(f"  on {held}; trained on {told['trained']['rows']:,} rows in {told['trained']['seconds']:.1f} s")


def print_models(screen: Screen, models: Sequence[ModelState]) -> None:
    now = datetime.now(UTC)
    rows: list[list[Cell]] = []
    for one in models:
        differ = f"registry {one.registry_version or '-'}, Redis {one.serving_version or '-'}"
        version = one.version or (f"{one.registry_version} (not adopted)" if one.registry_version else "none yet")
        rows.append(
            [
                one.model_id,
                version,
                str(one.generation if one.generation is not None else "-"),
                age(one.since, now),
                one.sha256[:12] if one.sha256 else "-",
                one.job[-8:] if one.job else "-",
                figure(one.max_drift_score),
                Styled(differ, "red")
                if not one.agree
                else Styled(f"agree; beside them {', '.join(one.strays)}", "yellow")
                if one.strays
                else Styled("agree", "green"),
            ]
        )
    columns = ["model", "version", "generation", "since", "sha256", "job", "worst PSI", "stores"]
    screen.table(columns, rows, right=["generation", "worst PSI"])


def print_changes(screen: Screen, changes: Sequence[Change]) -> None:
    rows: list[list[Cell]] = []
    for one in changes:
        gate, snapshot = one.gate or {}, one.snapshot or {}
        metric = gate.get("metric") or ""
        numbers = [figure((gate.get(side) or {}).get(metric)) for side in ("champion", "challenger")]
        rows.append(
            [
                one.model_id, str(one.generation), one.version, Styled("withdrawn", "red") if one.withdrawn else one.kind,
                f"{one.since:%Y-%m-%d %H:%M:%S}", f"{one.until:%Y-%m-%d %H:%M:%S}" if one.until else "now", one.job[-8:],
                str(snapshot.get("sha256") or "-")[:12], metric or "-", *numbers, one.problem or "",
            ]
        )  # fmt: skip
    columns = ["model", "generation", "version", "by", "since (UTC)", "until", "job", "snapshot", "metric", "champion"]
    screen.table([*columns, "challenger", ""], rows, right=["generation", "champion", "challenger"])


def print_plan(screen: Screen, plan: Plan) -> None:
    now = plan.in_production or "nothing on record"
    screen.line(
        f"{plan.model}: {plan.version} (sha256 {plan.sha256[:12]}…) would replace {now}, as generation {plan.generation}"
    )
    screen.table(["store", "operation", "if"], [[one.store, one.operation, one.condition] for one in plan.operations])


def print_check(screen: Screen, check: Check) -> None:
    screen.line(word(check.health), " " * (9 - len(check.health)), f"{check.party:<22} {check.says}")
    if check.cure:
        screen.line(f"{'':<9}next: {check.cure}")
