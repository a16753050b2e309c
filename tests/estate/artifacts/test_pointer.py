from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from servicectl.errors import BadData, IntegrityError
from servicectl.estate.artifacts.pointer import Pointer, decode, encode

POINTER = Pointer(
    model_id="X",
    generation=3,
    version="0.1.2",
    sha256="a" * 64,
    name="Model_X/Model_X_0.1.2.pkl",
    job_id="job-1",
    manifest_sha256="b" * 64,
    size=1234,
    published_at=datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC),
)
BASELINE = {"age": {"mean": 41.5, "nulls": 0, "größe": None}}


def changed(**fields: Any) -> bytes:
    tree = json.loads(encode(POINTER, BASELINE))
    tree["servicectl"] |= fields
    return json.dumps(tree).encode()


@pytest.mark.parametrize("pointer", [POINTER, replace(POINTER, generation=0, manifest_sha256=None)])
def test_what_was_encoded_is_decoded(pointer: Pointer) -> None:
    assert decode(encode(pointer, BASELINE)) == (pointer, BASELINE)


def test_equal_pointers_have_equal_bytes() -> None:
    assert encode(POINTER, {"b": 1, "a": 2}) == encode(replace(POINTER), {"a": 2, "b": 1})


def test_a_json_from_before_servicectl_is_a_baseline_without_a_pointer() -> None:
    assert decode(b'{"mean": 1.5, "spread": NaN}')[0] is None
    assert decode(b'{"mean": 1.5}') == (None, {"mean": 1.5})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[1]",
        b"{" * 100_000,
        b"[" * 100_000,
        encode(POINTER, BASELINE)[:-1],
        b'{"servicectl": 1, "baseline": {}}',
        b'{"servicectl": {"format": 1}}',
        changed(sha256="a" * 63),
        changed(generation=-1),
        changed(generation=1.5),
        changed(generation="3"),
        changed(published_at="2026-03-01T12:00:00"),
        changed(name=None),
    ],
)
def test_a_damaged_pointer_is_named(content: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"Model_X/Model_X_Production\.json is damaged"):
        decode(content, "Model_X/Model_X_Production.json")


def test_a_pointer_of_a_newer_servicectl_is_not_misread() -> None:
    with pytest.raises(IntegrityError, match="format 2") as refused:
        decode(changed(format=2))

    assert "newer" in refused.value.cure


def test_members_that_a_newer_servicectl_added_are_ignored() -> None:
    assert decode(changed(colour="blue")) == (POINTER, BASELINE)


@pytest.mark.parametrize(
    ("pointer", "baseline"),
    [
        (POINTER, {"mean": float("nan")}),
        (POINTER, {"mean": float("inf")}),
        (replace(POINTER, published_at=datetime(2026, 3, 1)), {}),  # noqa: DTZ001 -- the missing zone is the point
        (replace(POINTER, sha256="short"), {}),
    ],
)
def test_what_could_not_be_read_again_is_not_written(pointer: Pointer, baseline: dict[str, Any]) -> None:
    with pytest.raises(BadData, match=r"X 0\.1\.2"):
        encode(pointer, baseline)
