"""The demo's story on one screen: 100 columns at most, readable in 80, plain text in a pipe."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

if TYPE_CHECKING:
    from rich.status import Status

    from servicectl.cli.demo_story import Stage

_WIDTH = 100
_BAR = 20
_BAR_ENDS_AT = 1.0  # a PSI of 1 fills the bar; CRITICAL begins at 0.25
_COLOURS = {"PASS": "green", "WARNING": "yellow", "CRITICAL": "bold red", "INTERRUPTED": "yellow", "COMPLETED": "green"}


class Screen:
    """Prints each stage as it ends. `quiet` prints nothing: --json tells the facts instead."""

    def __init__(self, *, quiet: bool = False) -> None:
        columns = shutil.get_terminal_size((_WIDTH, 24)).columns
        self.console = Console(highlight=False, width=max(40, min(_WIDTH, columns)), quiet=quiet)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a name or a message may hold what this terminal cannot show
        self._status: Status | None = None
        self._quiet = quiet

    @contextmanager
    def working(self) -> Iterator[None]:
        """A line below the story that says what is under way, where somebody watches."""
        console = self.console if self.console.is_terminal and not self._quiet else Console(file=sys.stderr)
        if not console.is_terminal:
            yield
            return
        with console.status("servicectl demo") as self._status:
            try:
                yield
            finally:
                self._status = None

    def begin(self, stage: Stage) -> None:
        if self._status is not None:
            self._status.update(stage.title)

    def end(self, stage: Stage) -> None:
        if not stage.happened:
            self._failed(stage)
        elif stage.name in SHOWN:
            SHOWN[stage.name](self, stage)

    def head(self, title: str, seconds: float | None = None) -> None:
        line = Table.grid(expand=True, padding=(0, 1, 0, 0))
        line.add_column(ratio=1)
        line.add_column(justify="right")
        line.add_row(f"[bold]{title}[/]", "" if seconds is None else f"[dim]{seconds:.1f} s[/]")
        self._print(line)

    def say(self, text: str) -> None:
        self._print(Padding(text, (0, 0, 0, 2), expand=False))

    def as_it_is(self, text: str) -> None:
        """A path or a command: never broken, so that it can be copied."""
        self.console.print("  " + escape(text), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self._print(Padding(table, (0, 0, 0, 2), expand=False))

    def bar(self, value: float) -> str:
        block = "█" if self.console.encoding.lower().startswith("utf") else "#"
        length = round(min(value / _BAR_ENDS_AT, 1.0) * _BAR)
        return block * length + ("+" if value > _BAR_ENDS_AT else "")

    def _print(self, shown: RenderableType) -> None:
        if self.console.is_terminal:
            self.console.print(shown)
            return
        with self.console.capture() as captured:
            self.console.print(shown)
        # A table pads its lines; in a file or a paste nobody wants that.
        for line in captured.get().splitlines():
            self.console.out(line.rstrip(), highlight=False)

    def _failed(self, stage: Stage) -> None:
        self.head(f"[red]did not happen:[/] {stage.title}", stage.seconds)
        self.say(f"seen: {escape(stage.seen or '')}")
        self.as_it_is(f"look at {stage.log}")


def coloured(word: str) -> str:
    return f"[{_COLOURS[word]}]{word}[/]" if word in _COLOURS else escape(word)


def _estate(screen: Screen, stage: Stage) -> None:
    screen.head("An estate in small", stage.seconds)
    screen.as_it_is(f"in {stage.facts['folder']}, which stays")
    screen.say(f"processes: {escape(stage.facts['redis'])}, the handler, Service C, Service B")


def _sole_holder(screen: Screen, stage: Stage) -> None:
    refused = stage.facts["refused"].rpartition("IO Error: ")[2].partition(" on file")[0]
    screen.say(f"{stage.facts['database']} is the handler's alone; others hear: {escape(refused[:60])}")


def _old_calls(screen: Screen, stage: Stage) -> None:
    told = stage.facts
    calls = f"{told['calls']:,} old calls of a bank ({told['first']} to {told['last']})"
    screen.head(f"{calls} stored in bulk, view features made", stage.seconds)


def _first_model(screen: Screen, stage: Stage) -> None:
    screen.head(f"servicectl retrain Bank_Calls[not bold]: published as {stage.facts['version']}[/]", stage.seconds)
    screen.say(escape(stage.facts["reason"]))


def _sync(screen: Screen, stage: Stage) -> None:
    said = ", ".join(f"{model} {came}" for model, came in stage.facts["models"].items())
    screen.head(f"servicectl sync-production[not bold]: {escape(said)}[/]", stage.seconds)


def _first_predictions(screen: Screen, stage: Stage) -> None:
    told = stage.facts
    model = f"{told['version']}, sha256 {told['sha256'][:12]} as the pointer says"
    screen.say(f"Service B answers {len(told['calls'])} real calls over gRPC with {model}")


def _check_before(screen: Screen, stage: Stage) -> None:
    told = stage.facts
    screen.head("servicectl drift-check[not bold]: before any new row; nothing found, nothing queued[/]", stage.seconds)
    if told["not_followed_because"]:
        words = ", ".join(f"{count} {status}" for status, count in told["service_c_says"].items() if count)
        screen.say(f"Service C itself says {words}; not followed: {escape('; '.join(told['not_followed_because']))}")
    screen.say(
        f"the builtin statistics get Service C's PSI and KS for {told['same_figures']} of {told['measured']} features"
    )


def _new_calls(screen: Screen, stage: Stage) -> None:
    told = stage.facts
    screen.head(f"The newest calls arrive, until {told['last']}", stage.seconds)
    waited = told["visible_after_seconds"]
    screen.say(
        f"{told['by_write_queue']} by the write queue (visible after {waited} s), {told['by_handler']:,} by the handler, "
        f"{told['without_time']} uploads of the year 1"
    )


def _drift_found(screen: Screen, stage: Stage) -> None:
    told = stage.facts
    left_out = f"{told['values_without_time_left_out']} uploaded values without a time left out"
    screen.head(f"servicectl drift-check[not bold]: finds drift; {left_out}[/]", stage.seconds)
    ordered = sorted(told["features"], key=lambda one: -(one["psi"] or 0.0))
    rows = [
        (
            one["feature"],
            _figure(told["service_c"].get(one["feature"])),
            coloured(one["status"]),
            _figure(one["psi"]),
            f"[cyan]{screen.bar(one['psi'] or 0.0)}[/]",
            coloured(one["verdict"]),
        )
        for one in ordered
    ]
    columns = ["feature", "Service C", "says", "builtin", "PSI since training", "verdict"]
    screen.table(columns, rows, right=["Service C", "builtin"])
    for lost in told["decay"]:
        screen.say(
            f"the champion's own {lost['metric']} where labels have arrived: {lost['before']:.3f} at its publish, "
            f"{lost['now']:.3f} on the {lost['rows_now']:,} newest calls ({told['beside'].get('(decay)', '-')})"
        )


def _alarm(screen: Screen, stage: Stage) -> None:
    told = stage.facts
    screen.say(
        f"[bold red]ALARM[/] sounded {told['sounded']} times, stored and told; the retrain is queued, and run now"
    )


def _retrained(screen: Screen, stage: Stage) -> None:
    told = stage.facts
    rows_of_both = f"{told['judged_on_rows']:,} newest calls, seen by neither"
    screen.head(
        f"Champion {told['champion_version']} against the challenger[not bold]: {rows_of_both}[/]", stage.seconds
    )
    champion = told["champion"]
    chosen = [name for name in ("f1_macro", "accuracy", "roc_auc") if name in told["challenger"]]
    rows = [
        (name + (" *" if name == told["metric"] else ""), _figure(champion[name]), _figure(told["challenger"][name]))
        for name in chosen
    ]
    screen.table(["metric", "champion", "challenger"], rows, right=["champion", "challenger"])
    screen.say(f"* {told['reason']}")


def _published(screen: Screen, stage: Stage) -> None:
    told = stage.facts
    place = f"generation {told['generation']}, replaces {told['replaces']}"
    screen.head(f"{told['version']} is published[not bold]: {place}[/]", stage.seconds)
    screen.say(escape(told["serving"]))


def _second_predictions(screen: Screen, stage: Stage) -> None:
    told = stage.facts
    model = f"{told['version']}, sha256 {told['sha256'][:12]} as the pointer says"
    screen.head(f"The same calls again[not bold]: answered by {model}[/]", stage.seconds)
    rows = (
        ("before", told["answers_before"]),
        ("now", told["answers"]),
        ("subscribed", told["happened_then"]),
    )
    screen.table(["call", *map(str, told["calls"])], [(name, *map(str, values)) for name, values in rows])


def _stores(screen: Screen, stage: Stage) -> None:
    told = stage.facts
    screen.head("In the stores", stage.seconds)
    registry = ", ".join(f"{row['version']} {row['status']}" for row in told["registry"])
    rows, redis = told["rows"], told["redis"]
    screen.say(f"artifacts: {_by_stem(told['files'])}")
    screen.say(f"registry:  {registry}; {rows['drift_results']} drift results, {rows['model_baselines']} baselines")
    screen.say(f"Redis:     {len(redis['keys'])} keys, {redis['model_events']} model events; all three agree")


def _by_stem(files: Mapping[str, int]) -> str:
    """Each version once, with the kinds of files that it has."""
    kinds: dict[str, list[str]] = {}
    for name in files:
        last = name.rpartition("_")[2]
        stem = next(
            (end for end in (".manifest.json", ".canary.json", ".json", ".parquet", ".pkl") if last.endswith(end)), ""
        )
        kinds.setdefault(last.removesuffix(stem), []).append(stem)
    alike: dict[tuple[str, ...], list[str]] = {}
    for stem, ends in kinds.items():
        alike.setdefault(tuple(sorted(ends)), []).append(stem)
    return ", ".join(f"{' and '.join(stems)} ({' '.join(ends)})" for ends, stems in alike.items())


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


SHOWN: dict[str, Callable[[Screen, Stage], Any]] = {
    "estate": _estate,
    "sole-holder": _sole_holder,
    "old-calls": _old_calls,
    "first-model": _first_model,
    "sync-production": _sync,
    "first-predictions": _first_predictions,
    "check-before": _check_before,
    "new-calls": _new_calls,
    "drift-found": _drift_found,
    "alarm": _alarm,
    "retrained": _retrained,
    "published": _published,
    "second-predictions": _second_predictions,
    "stores": _stores,
}
