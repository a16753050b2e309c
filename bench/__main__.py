"""`python -m bench NAME`: one benchmark's figures as a table, or with --json as one JSON object on stdout.

Exit status 0 when everything was measured, also over a limit: a figure from a busy machine is for a reader to judge. Where a
benchmark can see a promise broken (`is_broken`), that is 1.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import math
import pkgutil
from pathlib import Path
from types import ModuleType

import bench


def _benchmarks() -> dict[str, str]:
    """Name -> first line of the docstring, read without importing anything."""
    found = {}
    for module in pkgutil.iter_modules(bench.__path__):
        if not module.name.startswith("_"):
            source = (Path(__file__).parent / f"{module.name}.py").read_text()
            found[module.name.replace("_", "-")] = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    return found


def _arguments() -> argparse.Namespace:
    benchmarks = _benchmarks()
    listing = "\n".join(f"  {name:<12} {what}" for name, what in benchmarks.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure one thing about servicectl.",
        epilog=f"benchmarks:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", choices=benchmarks, help="one of the benchmarks below")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: seconds, not precision")
    parser.add_argument("--json", action="store_true", help="print one JSON object of figures")
    known, _ = parser.parse_known_args()
    add_arguments = getattr(_module(known.name), "add_arguments", None)
    if add_arguments is not None:
        add_arguments(parser.add_argument_group(f"of {known.name}"))
    return parser.parse_args()


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"bench.{name.replace('-', '_')}")


def _print_table(title: str, figures: dict[str, float | None], most: dict[str, float], least: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_column("at most", justify="right")
    table.add_column("at least", justify="right")
    table.add_column("")
    for name, value in figures.items():
        if value is None:
            table.add_row(name, "n/a")
            continue
        over, under = value > most.get(name, math.inf), value < least.get(name, -math.inf)
        verdict = "[bold red]over[/]" if over else "[bold red]under[/]" if under else "[green]ok[/]"
        known = name in most or name in least
        told = [f"{limits[name]:g}" if name in limits else "" for limits in (most, least)]
        table.add_row(name, f"{value:.2f}", *told, verdict if known else "")
    Console().print(table)


def main() -> None:
    arguments = _arguments()
    module = _module(arguments.name)
    own = {name: value for name, value in vars(arguments).items() if name not in ("name", "json")}
    figures: dict[str, float | None] = module.run(**own)
    if arguments.json:
        print(json.dumps(figures))
    else:
        _print_table(arguments.name, figures, getattr(module, "LIMITS", {}), getattr(module, "MINIMUM", {}))
    is_broken = getattr(module, "is_broken", None)
    if is_broken is not None and is_broken(figures):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
