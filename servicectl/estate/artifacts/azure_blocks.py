"""A blob's content on its way into a container: blocks staged side by side, which a commit makes the blob.

Each block is read, digested and sent once; as many as are under way at once are held in memory.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobBlock

from servicectl import crash
from servicectl.estate.artifacts.azure_errors import code
from servicectl.estate.artifacts.protocol import ArtifactStoreError

PARALLEL = 4  # blocks under way at once, each of CHUNK bytes
_BLOCK_ID_LENGTH = 32
_SHORTEST_BLOCK_ID = 8  # random characters; fewer would not keep two publishers' blocks apart


@dataclass(frozen=True)
class Staged:
    """Blocks that are there and not yet a blob; `sha256` and `size` (bytes) are of exactly what was sent."""

    blocks: list[BlobBlock]
    sha256: str
    size: int


def staged(client: Any, name: str, chunks: Callable[[], Iterable[bytes]]) -> Staged:
    """Blocks of all chunks under random ids: two publishers' ids must never meet, or one commits the other's bytes.

    All uncommitted block ids of a blob must have one length. Where another program died and left blocks with ids
    of another length, theirs is taken over; otherwise the name would be blocked until they expire after a week.
    """
    lengths = [_BLOCK_ID_LENGTH]
    for length in lengths:
        try:
            return _stage(client, chunks(), length)
        except HttpResponseError as error:
            if code(error) != "InvalidBlobOrBlock":
                raise
            if len(lengths) == 1:
                lengths += sorted({n for block in client.get_block_list("uncommitted")[1] for n in _lengths(block)})
    raise ArtifactStoreError(
        f"another program left unfinished blocks under {name} that ours cannot join",
        cure="they expire after a week; or finish that program's upload, or upload the present content again",
    )


def _stage(client: Any, chunks: Iterable[bytes], id_length: int) -> Staged:
    digest, size, blocks = hashlib.sha256(), 0, []
    under_way: set[Future[Any]] = set()
    with ThreadPoolExecutor(PARALLEL) as pool:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            if len(under_way) == PARALLEL:
                _done(ended := wait(under_way, return_when=FIRST_COMPLETED).done)
                under_way -= ended
            blocks.append(BlobBlock(secrets.token_hex(_BLOCK_ID_LENGTH)[:id_length]))
            under_way.add(pool.submit(client.stage_block, blocks[-1].id, chunk, length=len(chunk)))
            crash.point("artifacts/azure/mid-upload")
        _done(under_way)
    return Staged(blocks, digest.hexdigest(), size)


def _done(ended: Iterable[Future[Any]]) -> None:
    for future in ended:
        future.result()


def _lengths(block: BlobBlock) -> Iterator[int]:
    """The possible lengths of a foreign block's id: the SDK returns ids that are no text still in base64."""
    possible = [len(block.id.encode())]
    with suppress(binascii.Error):
        possible.append(len(base64.b64decode(block.id, validate=True)))
    yield from (length for length in possible if _SHORTEST_BLOCK_ID <= length <= 2 * _BLOCK_ID_LENGTH)
