"""The kinds of job, each with its action. Imports wait until a job of the kind runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from servicectl.jobs.context import JobContext
from servicectl.jobs.model import Result
from servicectl.jobs.runner import Kind

if TYPE_CHECKING:
    from servicectl.actions.world import World

SYNC_PRODUCTION = "sync-production"
DRIFT_CHECK = "drift-check"
RETRAIN = "retrain"
PUBLISH = "publish"
ADOPT = "adopt"
DELIVER_ALARMS = "deliver-alarms"
ROLLBACK = "rollback"

_MODULES = {
    SYNC_PRODUCTION: "servicectl.actions.sync_production",
    DRIFT_CHECK: "servicectl.actions.drift_check",
    RETRAIN: "servicectl.actions.retrain",
    PUBLISH: "servicectl.actions.publish",
    ADOPT: "servicectl.actions.adopt",
    DELIVER_ALARMS: "servicectl.actions.deliver_alarms",
    ROLLBACK: "servicectl.actions.rollback",
}


def all_names() -> tuple[str, ...]:
    return tuple(_MODULES)


def serving_scope(model_id: str) -> str:
    """Held by whoever writes a model's registry rows, pointer or Redis keys."""
    return f"serving:{model_id}"


def retrain_scope(model_id: str) -> str:
    return f"retrain:{model_id}"


def kinds(world: World) -> Mapping[str, Kind]:
    def action(module: str) -> Callable[[JobContext], Result]:
        def run(context: JobContext) -> Result:
            result: Result = import_module(module).run(world, context)
            return result

        return run

    return {name: Kind(name, action(module)) for name, module in _MODULES.items()}
