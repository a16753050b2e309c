"""Where a long training stands, on disk: written whole, held against its digest, and always read again before going on.

A run continues from the re-read bytes of its own checkpoint even when nothing interrupted it. So what pickling might
change (a cached array, the order of a set) is changed in every run alike, and an interrupted run gives the same model.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

from servicectl import crash, log
from servicectl.files import write_atomically

_DIGEST = 64


class Checkpoints:
    """Named checkpoints in one folder. `identity` says what they belong to; those of anything else do not count."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self._identity = identity
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)

    def saved(self, name: str, state: Any) -> Any:
        """Write a state and give back what was read again."""
        # In one buffer and without slices: a survey is large, and its copies would be the peak of the whole training.
        buffer = io.BytesIO(bytes(_DIGEST))
        buffer.seek(_DIGEST)
        pickle.dump((self._identity, state), buffer, protocol=5)
        with buffer.getbuffer() as view:
            view[:_DIGEST] = hashlib.sha256(view[_DIGEST:]).hexdigest().encode()
        crash.point(f"training/{name}/before")
        write_atomically(self._path(name), buffer.getvalue())
        del buffer, state
        crash.point(f"training/{name}/saved")
        return self.read(name)

    def read(self, name: str) -> Any:
        """A state, or None where there is none of ours that is whole."""
        try:
            stored = self._path(name).read_bytes()
        except FileNotFoundError:
            return None
        digest, content = stored[:_DIGEST], memoryview(stored)[_DIGEST:]
        if hashlib.sha256(content).hexdigest().encode() != digest:
            log.warning(f"the checkpoint {self._path(name)} is damaged; training begins again from what is before it")
            return None
        try:
            identity, state = pickle.loads(content)  # noqa: S301 -- our own file, and whole
        except (AttributeError, ImportError):  # written by another version, which kept its classes elsewhere
            return None
        return state if identity == self._identity else None

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.checkpoint"
