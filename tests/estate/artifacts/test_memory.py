"""Models pass through a store in pieces: memory does not grow with them."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from servicectl.estate.artifacts.protocol import CHUNK
from servicectl.files import sha256_of
from tests.estate.artifacts.places import Place

SIZE = 40 << 20
# Four blocks under way, and what a client and its buffers hold beside each.
LIMIT = 7 * CHUNK
NAME, COPY = "Model_X/Model_X_0.1.0.pkl", "Model_X/Model_X_0.1.1.pkl"


@contextmanager
def peak(found: list[int]) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        found.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def test_an_upload_a_copy_and_a_replacement_of_40_mb_hold_a_few_blocks_at_a_time(place: Place, tmp_path: Path) -> None:
    store = place.store
    store.stat(NAME)  # imports and connections count for nothing
    model = tmp_path / "model"
    model.write_bytes(random.randbytes(SIZE))
    digest = sha256_of(model)

    def upload() -> None:
        store.create(NAME, model, {"job": "1"}, sha256=digest)

    def copy() -> None:
        found = store.stat(NAME)
        assert found is not None
        assert store.copy(NAME, COPY, found.etag).sha256 == digest

    def replace() -> None:
        found = store.stat(COPY)
        assert found is not None
        store.replace(COPY, model, {"job": "2"}, found.etag, sha256=digest)

    works: dict[str, Callable[[], None]] = {"upload": upload, "copy": copy, "replace": replace}
    held: dict[str, int] = {}
    for name, work in works.items():
        found: list[int] = []
        with peak(found):
            work()
        held[name] = found[0]
    assert max(held.values()) < LIMIT, held


def test_a_download_holds_less_than_the_blob_has(place: Place, tmp_path: Path) -> None:
    """Azure's SDK holds each of four blocks several times over, and leaves some to the collector: 70 to 150 MB of any size."""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(5 * SIZE)
    place.store.create(NAME, large, {"job": "1"})
    held: list[int] = []
    with peak(held):
        place.store.download(NAME, tmp_path / "down")
    assert (tmp_path / "down").stat().st_size == 5 * SIZE
    assert held[0] < 4 * SIZE if place.connection_string else held[0] < LIMIT, held
