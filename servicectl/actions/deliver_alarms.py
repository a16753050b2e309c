"""deliver-alarms: tell every configured sink of the alarms it has not been told of."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from servicectl import log
from servicectl.actions.kinds import DELIVER_ALARMS
from servicectl.config import secret
from servicectl.errors import ConfigError, ServicectlError, TryAgain
from servicectl.estate.alarm_sinks import REFUSED, AlarmRefused, AppriseSink, CommandSink, Sink, WebhookSink
from servicectl.estate.alarms import Alarm
from servicectl.jobs.context import JobContext
from servicectl.jobs.model import NewJob, Result

if TYPE_CHECKING:
    from servicectl.actions.world import World

KEPT = timedelta(days=30)
"""An alarm that no sink took for so long is not news any more; `alarms list` still has it."""

PATIENCE_S = 60.0
"""A run that has told sinks for so long leaves the rest to the next one."""

_REFUSALS = 3
"""A sink that has refused one alarm so often is not asked about that one again."""


def job(world: World) -> NewJob:
    """What tells the sinks that are down now, later."""
    return NewJob(DELIVER_ALARMS, DELIVER_ALARMS, {}, trigger=world.trigger)


def run(world: World, context: JobContext) -> Result:
    missing = context.observe(lambda: deliver(world))
    if missing:
        raise TryAgain(f"{missing} alarm(s) could not be delivered yet", cure="servicectl alarms list  shows why")
    return Result("delivered", {})


def waiting(world: World) -> bool:
    """Whether any sink is still to be told of anything; True also where the sinks cannot be made out."""
    try:
        return bool(_undelivered(world, [sink.name for sink in sinks(world)]))
    except ConfigError:
        return True


def deliver(world: World) -> int:
    """Try every alarm and sink once, for PATIENCE_S at most (and the end of the last try); returns how many are still to
    be told. A sink's failure is stored, never raised."""
    try:
        ours = sinks(world)
    except ConfigError as wrong:
        log.error(f"alarms stay in the store: {wrong}")
        return 1
    if not ours:
        return 0
    by_name = {sink.name: sink for sink in ours}
    down: dict[str, str] = {}
    missing = 0
    deadline = world.clock.monotonic() + PATIENCE_S
    for alarm, name in _undelivered(world, list(by_name)):
        if world.clock.monotonic() >= deadline:
            missing += 1
            continue
        if name not in down:
            try:
                by_name[name].send(alarm)
            except AlarmRefused as refused:
                log.warning(f"alarm {alarm.short_id} was not delivered: {refused.message}")
                world.alarms.tried(alarm.alarm_id, name, refused.message)
                missing += 1
                continue
            except ServicectlError as error:
                down[name] = error.message
                log.warning(f"alarm {alarm.short_id} was not delivered: {error.message}")
        # A sink that is down is asked once per run; the alarms behind the first wait with it.
        world.alarms.tried(alarm.alarm_id, name, down.get(name))
        missing += name in down
    return missing


def _undelivered(world: World, names: list[str]) -> list[tuple[Alarm, str]]:
    given_up = {
        (one.alarm_id, one.sink)
        for one in world.alarms.deliveries()
        if one.attempts >= _REFUSALS and (one.error or "").startswith(REFUSED)
    }
    found = world.alarms.undelivered(names, world.clock.now() - KEPT)
    return [(alarm, name) for alarm, name in found if (alarm.alarm_id, name) not in given_up]


def sinks(world: World) -> list[Sink]:
    """The sinks that are configured beside the journal."""
    alarms = world.config.alarms
    found: list[Sink] = []
    if alarms.command:
        found.append(CommandSink(alarms.command, alarms.timeout_s))
    if alarms.webhook:
        key = secret("SERVICECTL_WEBHOOK_SECRET", alarms.webhook_secret_file, "webhook-secret")
        found.append(WebhookSink(alarms.webhook, key, alarms.timeout_s, world.clock))
    if urls := secret("SERVICECTL_APPRISE_URLS", alarms.apprise_urls_file, "apprise-urls"):
        found.append(AppriseSink(tuple(line.strip() for line in urls.splitlines() if line.strip())))
    return found
