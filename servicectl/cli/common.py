"""What every command shares: the world it acts in, how it tells its result, how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from servicectl import log
from servicectl.errors import ExitStatus

if TYPE_CHECKING:
    from rich.console import Console

    from servicectl.actions.world import World


@dataclass
class Session:
    """One invocation: its global options and what they lead to."""

    config_path: str | None
    as_json: bool

    @cached_property
    def world(self) -> World:
        from servicectl import config
        from servicectl.actions.world import World

        return World(config.load(config.find(self.config_path)), trigger=_trigger())

    @cached_property
    def console(self) -> Console:
        from rich.console import Console

        # A pipe has no width to fit: one row stays one line.
        return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=400)

    def end(
        self,
        payload: Mapping[str, Any],
        render: Callable[[], None],
        status: ExitStatus = ExitStatus.OK,
    ) -> NoReturn:
        """Tell the result on stdout, as one JSON object or for a reader, and leave with the status."""
        if self.as_json:
            import msgspec

            print(msgspec.json.encode({**payload, "exit_status": int(status)}).decode())
        else:
            render()
        raise typer.Exit(int(status))

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """A spinner with the step under way, where somebody watches."""
        if self.as_json or not sys.stderr.isatty() or log.verbosity() < log.Level.NOTICE:
            yield
            return
        from rich.console import Console

        with Console(stderr=True).status(what) as status:
            log.on_progress(lambda text: status.update(f"{what} · {text}"))
            try:
                yield
            finally:
                log.on_progress(None)


def session(context: typer.Context) -> Session:
    found = context.find_object(Session)
    assert found is not None
    return found


def _trigger() -> str:
    """Who started this: told by our units and crontab, else guessed from systemd's own mark."""
    if told := os.environ.get("SERVICECTL_TRIGGER"):
        return told
    return "timer" if os.environ.get("INVOCATION_ID") and not sys.stdin.isatty() else "operator"


def exit_statuses(*extra: tuple[int, str]) -> str:
    """The EXIT STATUS paragraph of a command's help."""
    common = ((0, "done, or nothing was due"), (1, "failed"), (2, "usage"), (75, "try again later; the job stays resumable"))
    lines = [f"  {number:<3} {meaning}" for number, meaning in sorted({*common, (78, "configuration"), *extra})]
    return "\n".join(["\b", "EXIT STATUS", *lines])


def epilog(example: str, *extra: tuple[int, str]) -> str:
    """Example and exit statuses; --config, --json, -q and -v work with every command."""
    shown = "\n".join(["\b", "EXAMPLE", *(f"  {line}" for line in example.splitlines())])
    return f"{shown}\n\n{exit_statuses(*extra)}\n\nGlobal options (--config FILE, --json, -q, -v) may follow the command."


def lines(texts: Sequence[str]) -> Callable[[], None]:
    """A renderer that prints lines as they are."""

    def render() -> None:
        for text in texts:
            print(text)

    return render
