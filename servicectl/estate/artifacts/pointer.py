"""`Model_<id>_Production.json`: which immutable version is in production, beside its baseline statistics.

This pointer is the one truth about production. `generation` rises by one with every publish and every rollback, and it,
not the version, fences. A json from before servicectl has no "servicectl" member: it is a baseline without a pointer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from servicectl.errors import BadData, IntegrityError

FORMAT = 1  # rises when an older servicectl would misread the pointer

_Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
_Text = Annotated[str, Meta(min_length=1)]


@dataclass(frozen=True)
class Pointer:
    """`name` is the immutable blob; `sha256` and `size` (bytes) are its content's; `published_at` has a zone.

    `kind` says how this generation came to be; "incumbent" was found in production and adopted by nobody. `withdrawn` maps each version that was taken back to its model's digest:
    only an explicit command promotes it again.
    """

    model_id: _Text
    generation: Annotated[int, Meta(ge=0)]
    version: _Text
    sha256: _Digest
    name: _Text
    job_id: _Text
    manifest_sha256: _Digest | None  # None: adopted from before servicectl, there is no manifest
    size: Annotated[int, Meta(ge=0)]
    published_at: Annotated[datetime, Meta(tz=True)]
    kind: Literal["publish", "rollback", "undo", "adopt", "incumbent"] = "publish"
    withdrawn: Mapping[str, str] = field(default_factory=dict)


def encode(pointer: Pointer, baseline: dict[str, Any]) -> bytes:
    """The content of the pointer blob; equal arguments give equal bytes.

    Raises BadData for what decode() would refuse, such as NaN in the baseline or a time without a zone.
    """
    fields = asdict(pointer) | {"format": FORMAT, "published_at": pointer.published_at.isoformat()}
    try:
        msgspec.convert(fields, Pointer)
        text = json.dumps({"servicectl": fields, "baseline": baseline}, allow_nan=False, sort_keys=True)
    except (msgspec.ValidationError, ValueError) as error:
        raise BadData(f"the pointer of {pointer.model_id} {pointer.version} cannot be written: {error}") from None
    return text.encode()


def decode(content: bytes, name: str = "the production pointer") -> tuple[Pointer | None, dict[str, Any]]:
    """Pointer and baseline; no pointer for a json from before servicectl. `name` is told in errors.

    Raises IntegrityError for a damaged one and one that a newer servicectl wrote.
    """
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        raise IntegrityError(f"{name} is damaged: not JSON") from None
    if not isinstance(tree, dict):
        raise IntegrityError(f"{name} is damaged: not a JSON object")
    if "servicectl" not in tree:
        return None, tree
    fields, baseline = tree["servicectl"], tree.get("baseline")
    if not isinstance(fields, dict) or not isinstance(baseline, dict):
        raise IntegrityError(f"{name} is damaged: a member is missing or not an object")
    if fields.get("format") != FORMAT:
        raise IntegrityError(
            f"{name} has the format {fields.get('format')!r}, this servicectl knows {FORMAT}",
            cure="use the servicectl that published it, or a newer one",
        )
    try:
        return msgspec.convert(fields, Pointer), baseline
    except msgspec.ValidationError as error:
        raise IntegrityError(f"{name} is damaged: {error}") from None
