"""What a reader sees: rich where somebody watches, plain aligned text in a pipe (rich is not even imported there)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {
    "PASS": "green", "WARNING": "yellow", "CRITICAL": "bold red", "NOT_MEASURED": "magenta", "QUARANTINE": "magenta",
    "COMPLETED": "green", "FAILED": "red", "RUNNING": "cyan", "INTERRUPTED": "yellow", "PENDING": "blue",
    "CANCELLED": "dim", "STALE": "dim", "ok": "green", "warning": "yellow", "failed": "red",
}  # fmt: skip


class Styled(NamedTuple):
    text: str
    style: str


Cell = str | Styled


def word(text: str) -> Cell:
    """A state or verdict in its own colour."""
    return Styled(text, _STYLES[text]) if text in _STYLES else text


class Screen:
    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()

    @cached_property
    def console(self) -> Console:
        from rich.console import Console

        # A pipe has no width to fit: one row stays one line.
        return Console(highlight=False) if self.is_terminal else Console(highlight=False, width=400)

    def line(self, *cells: Cell) -> None:
        if not self.is_terminal:
            print("".join(cell if isinstance(cell, str) else cell.text for cell in cells))
            return
        from rich.text import Text

        self.console.print(Text.assemble(*cells))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]], right: Sequence[str] = ()) -> None:
        """Columns as wide as their widest cell; names in `right` are right-aligned."""
        if not self.is_terminal:
            self._plain_table(columns, rows, right)
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) if isinstance(cell, str) else Text(cell.text, style=cell.style) for cell in row))
        self.console.print(table)

    def _plain_table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]], right: Sequence[str]) -> None:
        texts = [list(columns)] + [[cell if isinstance(cell, str) else cell.text for cell in row] for row in rows]
        widths = [max(len(row[index]) for row in texts) for index in range(len(columns))]
        for row in texts:
            padded = (
                text.rjust(width) if column in right else text.ljust(width)
                for column, text, width in zip(columns, row, widths, strict=True)
            )
            print("  ".join(padded).rstrip())
