"""One invocation: its global options, the world it acts in, how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from servicectl import log
from servicectl.cli.screen import Screen
from servicectl.errors import ExitStatus, ServicectlError

if TYPE_CHECKING:
    from servicectl.actions.world import World


class Session:
    def __init__(self, config_path: str | None, *, as_json: bool) -> None:
        self.config_path = config_path
        self.as_json = as_json
        self.screen = Screen()

    @cached_property
    def world(self) -> World:
        from servicectl import config
        from servicectl.actions.world import World
        from servicectl.jobs.owner import trigger

        return World(config.load(config.find(self.config_path)), trigger=trigger())

    def end(
        self, payload: Mapping[str, Any], render: Callable[[], None], status: ExitStatus = ExitStatus.OK
    ) -> NoReturn:
        """Tell the result on stdout, as one JSON object or for a reader, and leave with the status."""
        try:
            if self.as_json:
                import msgspec

                print(msgspec.json.encode({**payload, "exit_status": int(status)}).decode())
            else:
                render()
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            # What is still buffered would fail again, with a status of its own, when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise ServicectlError(
                f"the result could not be written to stdout: {error.strerror}",
                cure="what was done stands and is on record: servicectl jobs list",
            ) from None
        sys.exit(int(status))

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


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    log.set_verbosity(log.Level.ERROR if quiet else log.Level.DEBUG if verbose else log.Level.NOTICE)
