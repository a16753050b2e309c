"""Drift over time, and the evidence of one check, as an operator sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from servicectl.cli.screen import Cell, Screen, Styled, word
from servicectl.cli.tables import figure

if TYPE_CHECKING:
    from servicectl.actions.drift_calibrate import Calibration
    from servicectl.estate.registry import DriftResult

_LEVELS = "▁▂▃▄▅▆▇█"
_GAP = "·"
_WIDTH = 60
_BAR = 30


def sparkline(values: Sequence[float | None]) -> str:
    """Given figures in order of time, a character each from 0 to the largest; a dot where there is none.

    More of them than fit share characters, each of which shows the largest of its own: a year still shows its peaks.
    """
    if len(values) > _WIDTH:
        cuts = [len(values) * number // _WIDTH for number in range(_WIDTH + 1)]
        shared = (values[start:stop] for start, stop in pairwise(cuts))
        values = [max((value for value in some if value is not None), default=None) for some in shared]
    known = [value for value in values if value is not None]
    top = max(known, default=0.0)
    steps = len(_LEVELS) - 1
    return "".join(
        _GAP if value is None else _LEVELS[round(max(value, 0.0) / top * steps) if top > 0 else 0] for value in values
    )


def print_history(screen: Screen, results: Sequence[DriftResult], *, one_feature: bool) -> None:
    if not results:
        screen.line("no check of this has been recorded")
        return
    if one_feature:
        screen.line("PSI  ", sparkline([one.psi for one in results[::-1]]))
        rows: list[list[Cell]] = [
            [
                f"{one.checked_at:%Y-%m-%d %H:%M}",
                one.model_version,
                figure(one.psi),
                figure(one.ks_stat),
                f"{one.feature_rows or 0:,}",
                word(one.verdict),
                one.reason,
            ]
            for one in results
        ]
        columns = ["checked (UTC)", "version", "PSI", "KS", "rows", "verdict", "reason"]
        screen.table(columns, rows, right=["PSI", "KS", "rows"])
        return
    rows = []
    for feature in sorted({one.feature_name for one in results}):
        newest_first = [one for one in results if one.feature_name == feature]
        known = [one.psi for one in newest_first if one.psi is not None]
        rows.append(
            [
                feature,
                sparkline([one.psi for one in newest_first[::-1]]),
                figure(newest_first[0].psi),
                figure(max(known, default=None)),
                str(len(newest_first)),
                word(newest_first[0].verdict),
            ]
        )
    columns = ["feature", "PSI over time", "now", "most", "checks", "verdict"]
    screen.table(columns, rows, right=["now", "most", "checks"])


def print_evidence(screen: Screen, evidence: Sequence[Mapping[str, Any]]) -> None:
    """Given the `evidence` of a drift-check's result, each feature's figures and its two distributions."""
    shown = set()
    for one in evidence:
        found = one["evidence"]
        key = (found["feature"], found["reference_rows"], found["psi"])
        if key in shown:  # the same comparison counts for several models
            continue
        shown.add(key)
        _print_feature(screen, found)


def print_decay(screen: Screen, measured: Sequence[Mapping[str, Any]]) -> None:
    """Given the `decay` of a drift-check's result, each model's score then and now."""
    for one in measured:
        found = one["decay"]
        then = f"{found['rows_before']:,} rows of its publish" if found["rows_before"] else "the record of its publish"
        screen.line()
        screen.line(Styled(one["model_id"], "bold"), f"  {one['version']}, {found['metric']} where labels have arrived")
        screen.line(f"  {found['before']:10.4f}  on {then}")
        screen.line(f"  {found['now']:10.4f}  on its {found['rows_now']:,} newest labelled rows")
        screen.line(
            f"  {found['difference']:+10.4f}  at most {found['high']:+.4f}, over {found['blocks']} blocks of time"
        )


def print_calibration(screen: Screen, found: Calibration) -> None:
    rows: list[list[Cell]] = [
        [name, figure(one.ks), figure(one.share_change), figure(one.estate_psi), f"{one.rows:,}", f"{one.places:.1f}"]
        for name, one in found.features.items()
    ]
    columns = ["feature", "KS", "share", "PSI (Service C)", "rows", "windows side by side"]
    screen.table(columns, rows, right=columns[1:])
    for name in found.left_out:
        screen.line(f"{name}: too few rows, the configured floors stay")
    screen.line(f"what these exceed is CRITICAL; by themselves they do in {found.budget:.2%} of the checks")


def _print_feature(screen: Screen, found: Mapping[str, Any]) -> None:
    screen.line()
    screen.line(Styled(found["feature"], "bold"), f"  compared as a {found['kind']}")
    if found["broken"]:
        screen.line(Styled("  broken data: ", "magenta"), found["broken"])
    for window in ("reference", "current"):
        rows, absent = found[f"{window}_rows"], found[f"{window}_absent"]
        screen.line(f"  {window:<10}{rows:>12,} rows, {absent:,} without a value")
    figures = {
        "PSI": found["psi"],
        "PSI on ten equal bins": found["estate_psi"],
        "KL": found["kl"],
        "KS": found["ks"],
        "Wasserstein (in std)": found["wasserstein"],
        "largest change of a share": found["share_change"] if found["kind"] == "category" else None,
        "outside the old range": found["out_of_range"],
    }
    screen.line("  " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if value is not None))
    if histogram := found["histogram"]:
        _print_histogram(screen, histogram)


def _print_histogram(screen: Screen, histogram: Mapping[str, Sequence[Any]]) -> None:
    before, after = (_shares(histogram[window]) for window in ("reference", "current"))
    top = max([*before, *after, 1e-9])
    width = max(len(label) for label in histogram["labels"])
    for label, old, new in zip(histogram["labels"], before, after, strict=True):
        screen.line(f"  {label:>{width}}  ", Styled(_bar(old, top), "dim"), f"{old:6.1%}  before")
        screen.line(f"  {'':>{width}}  ", Styled(_bar(new, top), "yellow"), f"{new:6.1%}  now")


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) or 1
    return [count / total for count in counts]


def _bar(share: float, top: float) -> str:
    return ("█" * round(share / top * _BAR)).ljust(_BAR)
