"""The DuckDB instance that opens the job store's file.

Starting an instance costs more than a transaction (12 of 19 ms), so a process starts one without a file, before it
queues for the store's lock, and keeps it. Under the lock the file is attached to it, and detached again before the
lock is let go: between transactions the process has nothing of the store open. What was committed stays in the WAL until
`store_file.fold`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from servicectl import store_file, store_fold
from servicectl.clock import Clock
from servicectl.errors import Busy, StoreError

_USES = 1000  # an instance grows by a few hundred bytes with each file it opened; a listener lives for months


class Engine:
    """Used by one thread at a time: the one that has the store's lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._making = threading.Lock()
        self._connection: Any = None
        self._process = 0
        self._uses = 0

    def start(self) -> Any:
        """The instance's connection. A forked child makes its own."""
        with self._making:
            if self._connection is None or self._process != os.getpid():
                self._connection = store_file.instance(self._path)
                self._process = os.getpid()
            return self._connection

    @contextmanager
    def attached(self, *, read_only: bool, clock: Clock, wait_s: float) -> Iterator[Any]:
        """A connection whose default database is the store. Raises Busy when another program has it open, StoreError."""
        import duckdb

        connection = self.start()
        try:
            store_file.attach(connection, self._path, read_only=read_only, clock=clock, wait_s=wait_s)
            yield connection
        except duckdb.Error as error:
            raise store_file.explained(error, self._path) from error
        finally:
            self._detach(connection)

    def fold_when_long(self) -> None:
        """What fails stays in the WAL."""
        connection = self.start()
        try:
            if store_fold.is_long(self._path):
                store_fold.fold(self._path, connection)
        except (StoreError, Busy, OSError):
            self._end(connection)  # it may still have the copy open
        except BaseException:
            self._end(connection)
            raise

    def _detach(self, connection: Any) -> None:
        """An instance that cannot let go is ended."""
        import duckdb

        try:
            connection.execute("USE memory")
            connection.execute(f"DETACH DATABASE IF EXISTS {store_file.ATTACHED}")
        except duckdb.Error:
            self._end(connection)
        except BaseException:
            self._end(connection)
            raise
        self._uses += 1
        if self._uses >= _USES:
            self._end(connection)

    def _end(self, connection: Any) -> None:
        self._connection, self._uses = None, 0
        connection.close()
