"""Reading ahead: one thread makes blocks while another uses them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")
_LOOK_S = 0.5


class Ahead(Generic[Item]):
    """Iterate over `items` made by a thread of its own, at most `depth` ahead. Use as a context manager.

    What the thread raises is raised by the iteration.
    """

    def __init__(self, items: Iterable[Item], depth: int) -> None:
        self._items = items
        self._queue: queue.Queue[tuple[list[Item], BaseException | None]] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._make, name="ahead", daemon=True)

    def __enter__(self) -> Iterator[Item]:
        self._thread.start()
        return self._taken()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _make(self) -> None:
        try:
            for item in self._items:
                if not self._put(([item], None)):
                    return
        except BaseException as error:  # noqa: BLE001 -- handed to the thread that iterates
            self._put(([], error))
        else:
            self._put(([], StopIteration()))

    def _put(self, made: tuple[list[Item], BaseException | None]) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(made, timeout=_LOOK_S)
            except queue.Full:
                continue
            return True
        return False

    def _taken(self) -> Iterator[Item]:
        while True:
            items, error = self._queue.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield from items
