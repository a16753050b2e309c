"""What the commands' parsers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import typer

from servicectl.cli.session import Session


def session(context: typer.Context) -> Session:
    found = context.find_object(Session)
    assert found is not None
    return found


def exit_statuses(*extra: tuple[int, str]) -> str:
    """The EXIT STATUS paragraph of a command's help."""
    common = (
        (0, "done, or nothing was due"),
        (1, "failed"),
        (2, "usage"),
        (75, "try again later; the job stays resumable"),
    )
    lines = [f"  {number:<3} {meaning}" for number, meaning in sorted({*common, (78, "configuration"), *extra})]
    return "\n".join(["\b", "EXIT STATUS", *lines])


def epilog(example: str, *extra: tuple[int, str]) -> str:
    """Example and exit statuses; --config, --json, -q and -v work with every command."""
    shown = "\n".join(["\b", "EXAMPLE", *(f"  {line}" for line in example.splitlines())])
    return (
        f"{shown}\n\n{exit_statuses(*extra)}\n\nGlobal options (--config FILE, --json, -q, -v) may follow the command."
    )


def lines(texts: Sequence[str]) -> Callable[[], None]:
    """A renderer that prints lines as they are."""

    def render() -> None:
        for text in texts:
            print(text)

    return render
