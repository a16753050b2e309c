"""doctor's checks of what publishing rests on: production blobs beside ours, Service B's library, the trial load's walls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from servicectl.actions.models import known_models
from servicectl.actions.production import read_truth, strays
from servicectl.actions.verification import WALLS
from servicectl.errors import IntegrityError

if TYPE_CHECKING:
    from servicectl.actions.world import World

_TRY = "import json, runpy, sys; print(json.dumps(runpy.run_path(sys.argv[1])['no_network']()))"


class Found(Struct, frozen=True):
    health: Literal["ok", "warning", "failed"]
    says: str
    cure: str = ""


def production_blobs(world: World) -> Found:
    """Blobs that the estate's loader may serve in place of the pointer's model."""
    found: dict[str, list[str]] = {}
    for model_id in known_models(world):
        try:
            truth = read_truth(world, model_id)
        except IntegrityError:
            continue  # told by sync-production, and by every command that needs this pointer
        if beside := [blob.name for blob in strays(world, model_id, truth.location)]:
            found[model_id] = beside
    if not found:
        return Found("ok", "no model has others beside ours")
    told = "; ".join(f"{model_id}: {', '.join(beside)}" for model_id, beside in found.items())
    return Found(
        "warning",
        f"readers may take these for the model in production: {told}",
        "servicectl artifacts adopt MODEL, or the next publish, keeps them under a version's name",
    )


def scikit_learn(world: World) -> Found:
    has = world.config.serving.scikit_learn
    if has is None:
        return Found(
            "warning",
            "serving.scikit_learn is unset: the library that a model was made with is not compared with Service B's",
            "set serving.scikit_learn to the version that Service B has",
        )
    return Found("ok", f"models are held against Service B's {has}")


def confinement(world: World) -> Found:
    """Whether the kernel grants what the trial load of a model asks for, tried in a process of its own."""
    program = Path(__file__).parents[1] / "training" / "confine.py"
    ended = subprocess.run(
        [sys.executable, "-I", "-c", _TRY, str(program)], capture_output=True, text=True, check=False
    )
    held = json.loads(ended.stdout) if ended.returncode == 0 else []
    absent = [wall for wall in WALLS if wall not in held]
    if not absent:
        return Found("ok", "a model is first opened without network, programs or new rights")
    required = world.config.trust.require_confinement
    return Found(
        "failed" if required else "warning",
        f"the kernel does not grant {', '.join(absent)}: a model's trial load is held by digests and allow-list alone",
        "run on Linux with seccomp (x86-64, aarch64)"
        + (", or set trust.require_confinement = false" if required else "; trust.require_confinement = true refuses"),
    )
