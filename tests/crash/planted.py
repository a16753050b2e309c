"""A kind of job whose step is not idempotent, for the selftest to catch.

A test has this module imported, by its name, into the processes of its own commands; no command of servicectl does.
"""

from __future__ import annotations

import redis

from servicectl.actions import kinds
from servicectl.actions.world import World
from servicectl.jobs.context import JobContext
from servicectl.jobs.model import Result

KIND = "planted"

kinds._MODULES[KIND] = __name__


def run(world: World, context: JobContext) -> Result:
    with redis.Redis.from_url(world.config.redis.url) as client:
        context.step("append", lambda: client.rpush("planted", "once"), int)
        context.step("afterwards", lambda: None, type(None))
    return Result("appended")
