from __future__ import annotations

import pytest

from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.protocol import ArtifactStoreError


def test_names_are_the_estates() -> None:
    folder = names.location("X")

    assert folder == "Model_X/"
    assert names.production(folder, "X", "pkl") == "Model_X/Model_X_Production.pkl"
    assert names.versioned(folder, "X", "0.1.12", "json") == "Model_X/Model_X_0.1.12.json"
    assert names.manifest(folder, "X", "0.1.12") == "Model_X/Model_X_0.1.12.manifest.json"
    assert names.canary(folder, "X", "0.1.12") == "Model_X/Model_X_0.1.12.canary.json"
    assert names.archived(folder, "X", "0.1.12", "ab" * 32, "pkl") == "Model_X/Model_X_0.1.12-abababababab.pkl"


@pytest.mark.parametrize(
    ("name", "production", "version"),
    [
        ("Model_X/Model_X_Production.pkl", True, None),
        ("Model_X/Model_X_Production", True, None),
        ("Model_X/Model_X_Production.json", True, None),
        ("Model_X/Model_X_Production_old.pkl", False, None),
        ("Model_Production/readme.txt", False, None),
        ("Model_X/Model_X_0.1.12.pkl", False, "0.1.12"),
        ("Model_X/Model_X_0.1.12.manifest.json", False, "0.1.12"),
        ("Model_X/Model_X_0.1.12.canary.json", False, "0.1.12"),
        ("Model_X/Model_X_0.1.12-abababababab.pkl", False, "0.1.12"),
        ("Model_A_0.1.0/Model_A_0.1.0_Production.pkl", True, None),
        ("Model_A_0.1.0/Model_A_0.1.0_2.0.0.pkl", False, "2.0.0"),
        ("Model_X/Model_X_123456.pkl", False, None),
        ("Model_X/Model_X_Production_0.1.0.pkl", False, "0.1.0"),
    ],
)
def test_a_name_tells_whether_it_is_production_and_which_version(
    name: str, production: bool, version: str | None
) -> None:
    assert names.is_production(name) is production
    assert names.version_of(name) == version


@pytest.mark.parametrize(("text", "folder"), [("Model_X", "Model_X/"), ("Model_X/", "Model_X/"), ("a/b", "a/b/")])
def test_a_location_gets_its_trailing_slash(text: str, folder: str) -> None:
    assert names.checked_location(text) == folder


@pytest.mark.parametrize("text", ["", "/", "/a", "a//", "..", "a/../b/", ".hidden/", "a\x00b", "a\\b", "x" * 300])
def test_a_location_outside_the_store_is_refused(text: str) -> None:
    with pytest.raises(ArtifactStoreError, match="not a name"):
        names.checked_location(text)


@pytest.mark.parametrize(
    ("model_id", "version", "extension"),
    [("a/b", "1.0.0", "pkl"), ("", "1.0.0", "pkl"), ("..", "1.0.0", "pkl"), ("X", "1.0", "pkl"), ("X", "1.0.0", "p/l")],
)
def test_parts_that_would_change_the_folder_or_the_meaning_are_refused(
    model_id: str, version: str, extension: str
) -> None:
    with pytest.raises(ArtifactStoreError):
        names.versioned("Model_X/", model_id, version, extension)
