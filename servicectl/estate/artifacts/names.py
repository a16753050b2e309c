"""How the estate names blobs: the folder, the production blob, its versions.

`Model_<id>/Model_<id>_Production.<ext>` is what the estate's loaders look for (name without extension ends in
"Production"); `Model_<id>/Model_<id>_<x.y.z>.<ext>` are servicectl's immutable versions.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from servicectl.estate.artifacts.protocol import ArtifactStoreError

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_EXTENSION = re.compile(r"[A-Za-z0-9]{1,16}")
_VERSIONED = re.compile(r"_(\d+\.\d+\.\d+)(?:-[0-9a-f]{12})?(?:\.(?:manifest|canary))?\.[A-Za-z0-9]+$")
_HISTORY = re.compile(r"_\d{6,}(?:-[0-9a-f]{12})?\.history\.json$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")
_LONGEST_SEGMENT = 200  # bytes; leaves room within a file system's 255 for the suffix of a temporary name
_LONGEST_NAME = 1024  # characters; a container's limit


def location(model_id: str) -> str:
    """The folder of a model that is new to the estate."""
    return f"Model_{_model_id(model_id)}/"


def checked_location(text: str) -> str:
    """A folder as the registry tells it, with its trailing slash. Raises ArtifactStoreError for anything else.

    Without the slash `Model_X` would also mean `Model_X2/…`.
    """
    folder = text if text.endswith("/") else f"{text}/"
    checked_name(folder[:-1])
    return folder


def checked_name(name: str) -> str:
    """A blob name that means the same in every store. Raises ArtifactStoreError.

    Refused: absolute names, empty or hidden segments, "..", a trailing dot (containers drop it), control characters.
    """
    if not is_name(name):
        raise ArtifactStoreError(f"{name!r} is not a name inside the artifact store")
    return name


def is_name(name: str) -> bool:
    """Whether a blob found in a store has a name that servicectl works with."""
    segments = name.split("/")
    bad = any(not segment or segment[0] == "." or segment[-1] == "." for segment in segments)
    too_long = len(name) > _LONGEST_NAME or any(len(segment.encode()) > _LONGEST_SEGMENT for segment in segments)
    return not bad and not too_long and not _CONTROL.search(name)


def checked_prefix(prefix: str) -> str:
    """A folder to list; unlike checked_location() it must come with its slash. Raises ArtifactStoreError."""
    if not prefix.endswith("/"):
        raise ArtifactStoreError(f"{prefix!r} is not a folder of the artifact store: no trailing /")
    return checked_location(prefix)


def production(location: str, model_id: str, ext: str) -> str:
    """The blob that readers take for the model in production; with ext "json" it is the pointer."""
    return f"{checked_location(location)}Model_{_model_id(model_id)}_Production.{_matching(_EXTENSION, ext)}"


def versioned(location: str, model_id: str, version: str, ext: str) -> str:
    """The immutable blob of one version."""
    return f"{_versioned_stem(location, model_id, version)}.{_matching(_EXTENSION, ext)}"


def archived(location: str, model_id: str, version: str, sha256: str, ext: str) -> str:
    """Where an incumbent goes whose version's name already holds other content."""
    return f"{_versioned_stem(location, model_id, version)}-{sha256[:12]}.{_matching(_EXTENSION, ext)}"


def manifest(location: str, model_id: str, version: str) -> str:
    """The manifest beside a version: digests, metrics, snapshot, libraries."""
    return f"{_versioned_stem(location, model_id, version)}.manifest.json"


def canary(location: str, model_id: str, version: str) -> str:
    """The requests, with their answers, that Service B must answer alike when this version is in production."""
    return f"{_versioned_stem(location, model_id, version)}.canary.json"


def history(location: str, model_id: str, generation: int) -> str:
    """Where the pointer of a generation is kept once another one has taken its place."""
    return f"{checked_location(location)}Model_{_model_id(model_id)}_{generation:06d}.history.json"


def is_history(name: str) -> bool:
    return bool(_HISTORY.search(name))


def is_production(name: str) -> bool:
    """Whether the name without its extension ends in "_Production"."""
    return PurePosixPath(name).stem.endswith("_Production")


def version_of(name: str) -> str | None:
    """`x.y.z` of a versioned, archived, manifest or canary blob; None for every other name."""
    found = _VERSIONED.search(name)
    return found.group(1) if found else None


def _versioned_stem(location: str, model_id: str, version: str) -> str:
    return f"{checked_location(location)}Model_{_model_id(model_id)}_{_matching(_VERSION, version)}"


def _model_id(model_id: str) -> str:
    return _matching(_MODEL_ID, model_id)


def _matching(pattern: re.Pattern[str], part: str) -> str:
    if not pattern.fullmatch(part):
        raise ArtifactStoreError(f"{part!r} cannot be part of a blob's name")
    return part
