"""Tables for a reader: aligned text, coloured where somebody watches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from servicectl.actions.doctor import Check
    from servicectl.actions.models import ModelState

_COLOURS = {
    "PASS": "green", "WARNING": "yellow", "CRITICAL": "bold red", "NOT_MEASURED": "magenta", "QUARANTINE": "magenta",
    "COMPLETED": "green", "FAILED": "red", "RUNNING": "cyan", "INTERRUPTED": "yellow", "PENDING": "blue",
    "CANCELLED": "dim", "ok": "green", "warning": "yellow", "failed": "red",
}  # fmt: skip


def coloured(word: str) -> str:
    return f"[{_COLOURS[word]}]{word}[/]" if word in _COLOURS else escape(word)


def plain_table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def age(moment: datetime | None, now: datetime) -> str:
    """How long ago, in the largest fitting unit."""
    if moment is None:
        return "-"
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    seconds = (now - aware).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if abs(seconds) >= size:
            return f"{seconds / size:.0f}{unit} ago"
    return f"{seconds:.0f}s ago"


def figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def print_decisions(console: Console, decisions: Sequence[Mapping[str, Any]]) -> None:
    table = plain_table("model", "feature", "PSI", "KS", "Service C", "verdict", "reason", right=("PSI", "KS"))
    for one in decisions:
        numbers = figure(one["psi"]), figure(one["ks_stat"])
        reason = "" if one["verdict"] == one["status"] else one["reason"]
        table.add_row(one["model_id"], one["feature"], *numbers, one["status"] or "-", coloured(one["verdict"]), escape(reason))
    console.print(table)


def print_verdict(console: Console, model_id: str, outcome: str, told: Mapping[str, Any]) -> None:
    verdict = told["verdict"]
    console.print(f"{model_id}: [bold]{outcome}[/]: {escape(verdict['reason'])}")
    champion, challenger = verdict.get("champion"), verdict["challenger"]
    table = plain_table("metric", "champion", "challenger", right=("champion", "challenger"))
    for metric, value in challenger.items():
        mark = " *" if metric == verdict["metric"] else ""
        table.add_row(metric + mark, figure(champion.get(metric)) if champion else "-", figure(value))
    console.print(table)
    held = f"{verdict['rows']:,} newest rows, seen by neither" if champion else f"{verdict['rows']:,} newest rows, not trained on"
    console.print(f"  on {held}; trained on {told['trained']['rows']:,} rows in {told['trained']['seconds']:.1f} s")


def print_models(console: Console, models: Sequence[ModelState]) -> None:
    now = datetime.now(UTC)
    table = plain_table("model", "version", "generation", "since", "sha256", "job", "worst PSI", "stores", right=("generation",))
    for one in models:
        stores = "agree" if one.agree else f"registry {one.registry_version or '-'}, Redis {one.serving_version or '-'}"
        version = one.version or (f"{one.registry_version} (not adopted)" if one.registry_version else "none yet")
        table.add_row(
            one.model_id,
            version,
            str(one.generation if one.generation is not None else "-"),
            age(one.since, now),
            one.sha256[:12] if one.sha256 else "-",
            one.job[-8:] if one.job else "-",
            figure(one.max_drift_score),
            f"[green]{stores}[/]" if one.agree else f"[red]{stores}[/]",
        )
    console.print(table)


def print_check(console: Console, check: Check) -> None:
    console.print(f"{coloured(check.health):<20} {check.party:<22} {escape(check.says)}")
    if check.cure:
        console.print(f"{'':<8} next: {escape(check.cure)}")
