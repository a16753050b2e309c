"""The demo's stages: each one happened, or the demo says which did not, what was seen and where to look."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servicectl.errors import ServicectlError


class StageFailed(Exception):
    """A stage did not happen. `seen` says what happened instead, `log` is the file to look at."""

    def __init__(self, seen: str, log: Path) -> None:
        super().__init__(seen)
        self.seen = seen
        self.log = log


class Stopped(Exception):
    """The demo goes no further; the story holds why."""


@dataclass
class Stage:
    """One step of the story. `facts` is small JSON: what the screen shows and what --json tells."""

    name: str
    title: str
    happened: bool = False
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    seen: str | None = None
    log: str | None = None

    def as_json(self) -> dict[str, Any]:
        told = {"name": self.name, "happened": self.happened, "seconds": round(self.seconds, 2), **self.facts}
        return told if self.happened else {**told, "seen": self.seen, "log": self.log}


class Story:
    """Stages in the order in which they must happen. `begin` and `end` are told of each, for a screen."""

    def __init__(
        self, plan: Sequence[tuple[str, str]], logs: Path, begin: Callable[[Stage], None], end: Callable[[Stage], None]
    ) -> None:
        self.stages = [Stage(name, title, seen="not reached") for name, title in plan]
        self._logs = logs
        self._begin = begin
        self._end = end
        self._started = time.monotonic()

    @property
    def happened(self) -> bool:
        return all(stage.happened for stage in self.stages)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Run one stage; what is raised inside means that it did not happen, and ends the story with Stopped.

        `seconds` is the block's own time unless the block sets it.
        """
        stage = next(stage for stage in self.stages if stage.name == name)
        self._begin(stage)
        started = time.monotonic()
        try:
            yield stage
        except StageFailed as failed:
            stage.seen, stage.log = failed.seen, str(failed.log)
        except ServicectlError as error:
            stage.seen, stage.log = str(error), str(self._logs)
        except (LookupError, TypeError, ValueError, OSError) as error:
            # A command answered in another shape than documented, or a file of the estate is not there.
            stage.seen, stage.log = f"{type(error).__name__}: {error}", str(self._logs)
        else:
            stage.happened, stage.seen = True, None
        finally:
            stage.seconds = stage.seconds or time.monotonic() - started
        self._end(stage)
        if not stage.happened:
            raise Stopped
