"""How commands that run jobs tell what came of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from servicectl import log
from servicectl.cli.screen import Styled
from servicectl.errors import ExitStatus
from servicectl.jobs.runner import Ran, worst

if TYPE_CHECKING:
    from servicectl.cli.session import Session


def end_with(
    at: Session, ran: Sequence[Ran], detailed: Mapping[str, ExitStatus] | None = None, also: Sequence[ExitStatus] = ()
) -> NoReturn:
    """Show each job, and leave with the worst status, of those in `also` too.

    `detailed` turns outcomes into statuses of their own.
    """
    statuses = [_status(one, detailed=detailed is not None) for one in ran]
    statuses += [
        status for outcome, status in (detailed or {}).items() if any(one.job.outcome == outcome for one in ran)
    ]
    at.end({"jobs": [as_json(one) for one in ran]}, lambda: _show(at, ran), worst([*statuses, *also]))


def _status(one: Ran, *, detailed: bool) -> ExitStatus:
    if detailed and one.exit_status is ExitStatus.FAILED and one.job.needs_operator:
        return ExitStatus.NEEDS_OPERATOR
    return one.exit_status


def as_json(ran: Ran) -> dict[str, Any]:
    """One job's end; the schema is in docs/json.md."""
    job = ran.job
    return {
        "job_id": job.job_id,
        "kind": job.kind,
        "scope": job.scope,
        "state": job.state.value,
        "outcome": job.outcome,
        "attempts": job.attempts,
        "exit_status": int(ran.exit_status),
        "result": job.result,
        "error": ran.error.message if ran.error else None,
        "cure": ran.error.cure if ran.error else None,
    }


def _show(at: Session, ran: Sequence[Ran]) -> None:
    for one in ran:
        if one.error is not None:
            subject = (
                one.job.scope if one.job.scope == one.job.kind else f"{one.job.kind} {one.job.scope.split(':')[-1]}"
            )
            log.error(f"{subject}: {one.error.message}")
            if one.error.cure:
                log.error(f"  next: {one.error.cure}")
            continue
        _SHOWN.get(one.job.kind, _plain)(at, one)


def _plain(at: Session, one: Ran) -> None:
    at.screen.line(f"{one.job.kind}: {one.job.outcome}  ", Styled(f"job {one.job.short_id}", "dim"))


def _sync(at: Session, one: Ran) -> None:
    result = one.job.result or {}
    for model_id, came in result.get("models", {}).items():
        if came != "unchanged" or at.screen.is_terminal:
            at.screen.line(f"{model_id}: {came}")
    for model_id, why in result.get("failed", {}).items():
        at.screen.line(f"{model_id}: ", Styled("not synced", "red"), f": {why}")
    for model_id in result.get("removed", []):
        at.screen.line(f"{model_id}: withdrawn")
    if one.job.outcome == "no-production-models" and at.screen.is_terminal:
        at.screen.line("nothing is in production")


def _drift(at: Session, one: Ran) -> None:
    from servicectl.cli.tables import print_decisions

    result = one.job.result or {}
    if one.job.outcome == "no-production-models":
        if at.screen.is_terminal:
            at.screen.line("nothing is in production, so there was nothing to check")
        return
    print_decisions(at.screen, result["decisions"])
    if left_out := result.get("rows_without_time"):
        at.screen.line(f"{left_out:,} values without a usable time were left out")
    held_back = result.get("held_back", {})
    for model_id, features in result["retrain"].items():
        if model_id in held_back:
            at.screen.line(f"{model_id}: drifted in {', '.join(features)}; not retrained now: {held_back[model_id]}")
        else:
            at.screen.line(f"{model_id}: retrain queued for {', '.join(features)}")
    if not result["retrain"]:
        at.screen.line("no retrain queued")


def _retrain(at: Session, one: Ran) -> None:
    from servicectl.cli.tables import print_verdict

    result = one.job.result or {}
    print_verdict(at.screen, result["model"], one.job.outcome or "", result)


def _publish(at: Session, one: Ran) -> None:
    result = one.job.result or {}
    if one.job.outcome == "published":
        replaces = f", replaces {result['replaces']}" if result.get("replaces") else ""
        at.screen.line(
            f"{result['model']}: published {result['version']} (generation {result['generation']}{replaces}), "
            f"sha256 {result['sha256'][:12]}…; {result['serving']}"
        )
        return
    if one.job.outcome == "held":
        at.screen.line(f"{result['model']}: held; servicectl approve {one.job.short_id}  lets it go on")
        return
    why = result.get("serving") or result.get("in_production")
    at.screen.line(f"{result['model']}: ", Styled(one.job.outcome or "", "red"), f": {why}")


def _rollback(at: Session, one: Ran) -> None:
    result = one.job.result or {}
    if one.job.outcome != "rolled-back":
        why = result.get("serving") or result.get("in_production")
        at.screen.line(f"{result['model']}: ", Styled(one.job.outcome or "", "red"), f": {why}")
        return
    taken_back = f", {', '.join(result['withdrawn'])} is withdrawn" if result["withdrawn"] else ""
    at.screen.line(
        f"{result['model']}: rolled back to {result['version']} (generation {result['generation']}{taken_back}); "
        f"{result['serving']}"
    )


def _adopt(at: Session, one: Ran) -> None:
    result = one.job.result or {}
    at.screen.line(f"{result['model']}: {one.job.outcome} as {result['version']}, sha256 {result['sha256'][:12]}…")


_SHOWN: Mapping[str, Callable[[Session, Ran], None]] = {
    "sync-production": _sync,
    "drift-check": _drift,
    "retrain": _retrain,
    "publish": _publish,
    "adopt": _adopt,
    "rollback": _rollback,
}
