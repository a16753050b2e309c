"""What the commands' parsers share."""

from __future__ import annotations

import os
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


SCHEDULED_HELP = "For timers: run what is due by [schedules], each slot once, whoever else starts it."


def for_timer(*, scheduled: bool) -> bool:
    """Whether `--scheduled` holds: not in a unit that somebody started by hand, who wants it to run now.

    A unit's process is told the timer that started it since systemd 252 (systemd.exec(5), $TRIGGER_UNIT).
    """
    in_unit = bool(os.environ.get("INVOCATION_ID"))
    return scheduled and not (in_unit and not os.environ.get("TRIGGER_UNIT") and _systemd_release() >= 252)


def _systemd_release() -> int:
    """0 where it cannot be told."""
    import subprocess

    try:
        asked = subprocess.run(["systemctl", "--version"], check=False, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    words = asked.stdout.split()
    return int(words[1]) if words[1:] and words[1].isdecimal() else 0


def lines(texts: Sequence[str]) -> Callable[[], None]:
    """A renderer that prints lines as they are."""

    def render() -> None:
        for text in texts:
            print(text)

    return render
