"""trust: the keys by which published models are believed."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct

from servicectl.errors import UsageError
from servicectl.files import fsync_folder


class Made(Struct, frozen=True):
    signing_key_file: str
    public_key: str


def make_keys(path: Path) -> Made:
    """A new key pair, the private half in a new file of mode 0600. Raises UsageError for a file that is there."""
    from servicectl.estate.trust import generate

    private, public = generate()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(private)
            file.flush()
            os.fsync(file.fileno())
        fsync_folder(path.parent)
    except FileExistsError:
        raise UsageError(f"{path} exists already", cure="name another file; old signatures need the old key") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", cure="name another file") from None
    return Made(str(path), public)
