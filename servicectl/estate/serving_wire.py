"""The names under which Service B's models lie in Redis, and the event that announces a change.

prod_models              set of model ids
model_metadata:<id>      JSON object, read by Service B, Service C and the gateway
model:<id>:<ext>         the artifact's bytes
model_events             stream (field `event`) and pub/sub channel, the same JSON text on both
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

PROD_MODELS = "prod_models"
EVENTS = "model_events"
EVENT_FIELD = "event"
EVENT_VERSION = 1
EVENTS_KEPT = 1000

_CANDIDATE = re.compile(r"(?P<model>.+)\.candidate\.(?P<sha256>[0-9a-f]{64})", re.DOTALL)


def metadata_key(model_id: str) -> str:
    return f"model_metadata:{model_id}"


def artifact_key(model_id: str, extension: str) -> str:
    return f"model:{model_id}:{extension}"


def candidate_name(model_id: str, sha256: str) -> str:
    """The name under which Service B loads a model that is not in production yet."""
    return f"{model_id}.candidate.{sha256}"


def candidate_sha256(name: str) -> str | None:
    """The digest in a candidate's name; None if it is no such name."""
    found = _CANDIDATE.fullmatch(name)
    return found["sha256"] if found else None


def event_text(
    model_id: str,
    generation: int | None,
    *,
    load: Mapping[str, str] | None,
    drop: Mapping[str, str | None] | None,
    job_id: str | None,
) -> str:
    """The JSON text of one event.

    `load` is {version, sha256, name} of what is served from now on, None when the model was withdrawn; `drop` is
    {version, sha256} of what was served before, None when there was nothing.
    """
    event = {
        "version": EVENT_VERSION,
        "model": model_id,
        "generation": generation,
        "load": load,
        "drop": drop,
        "job": job_id or None,
    }
    return json.dumps(event)
