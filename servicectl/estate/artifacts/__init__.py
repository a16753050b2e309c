"""Artifact stores: a local folder or an Azure container behind one small protocol."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from servicectl.errors import ConfigError

if TYPE_CHECKING:
    from servicectl.estate.artifacts.protocol import ArtifactStore

_CONTAINER = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")


def open_store(url: str, connection_string: str | None) -> ArtifactStore:
    """The store at `file:///absolute/folder` (taken literally, no %-escapes) or `azure://container`.

    A container is opened with the connection string, else with Azure's default credential chain at
    $AZURE_STORAGE_ACCOUNT_URL. Nothing is contacted yet. Raises ConfigError.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        if not rest.startswith("/"):
            raise ConfigError(f"the artifact store {url!r} is not an absolute folder", cure="write file:///folder")
        from servicectl.estate.artifacts.local import LocalStore

        return LocalStore(Path(rest))
    if scheme == "azure":
        container = rest.removesuffix("/")
        if not _CONTAINER.fullmatch(container):
            raise ConfigError(
                "the part after azure:// cannot be a container's name (3 to 63 of a-z, 0-9 and single dashes)",
                cure="write azure://container; keys and addresses go into the connection string",
            )
        from servicectl.estate.artifacts.azure_connect import from_connection_string, from_default_credential

        if connection_string:
            return from_connection_string(connection_string, container)
        return from_default_credential(os.environ.get("AZURE_STORAGE_ACCOUNT_URL"), container)
    # The url is not repeated: a connection string pasted in its place would be shown.
    raise ConfigError(
        "the artifact store's url begins neither with file:// nor with azure://",
        cure="set [artifacts] url to file:///folder or azure://container",
    )
