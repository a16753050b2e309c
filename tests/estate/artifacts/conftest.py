from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.estate.artifacts.places import Container, Folder, Place
from tests.parts.azurite import Azurite, azurite


@pytest.fixture(scope="session")
def azurite_part() -> Iterator[Azurite]:
    with azurite() as server:
        yield server


@pytest.fixture
def container(azurite_part: Azurite) -> Container:
    return Container(azurite_part)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "artifacts")


@pytest.fixture(params=["folder", pytest.param("container", marks=pytest.mark.parts)])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found
