"""The real parts tests run against, each started for the test that needs it."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def strict() -> bool:
    """CI runs strictly: a part that is missing there is a failure."""
    return bool(os.environ.get("CI") or os.environ.get("STRICT"))


def missing(part: str, why: str) -> None:
    """Skip by name on a laptop; fail in CI."""
    message = f"{part} is missing: {why}"
    if strict():
        pytest.fail(message)
    pytest.skip(message)


def program(name: str) -> str:
    """The path of a program this test needs."""
    found = shutil.which(name)
    if found is None:
        missing(name, "not on PATH; `make test` installs it when it may")
    assert found is not None
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
