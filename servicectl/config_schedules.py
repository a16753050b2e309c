"""The sections `[schedules.*]`: the calendar that timers go by, and what becomes of a slot that was missed.

The defaults are those of deploy/systemd and deploy/crontab; a test holds the three together.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

NEVER = "never"

Cron = Annotated[str, Meta(pattern=r"^\s*(never|\S+(\s+\S+){4})\s*$")]
Zone = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_+/-]+$", max_length=64)]


class ScheduleConfig(Struct, frozen=True, forbid_unknown_fields=True):
    cron: Cron = NEVER  # minute, hour, day of month, month, day of week; "never": no slots
    zone: Zone | None = None  # e.g. "Europe/Berlin"; unset: the machine's, as for systemd and cron
    missed: Literal["skip", "latest", "all"] = "skip"  # of slots that were missed, so many are made up for ...
    max_age: str = "7d"  # ... unless they are older than this
    grace: str = "30m"  # a slot is its timer's for so long; only then it was missed


class DriftCheckSchedule(ScheduleConfig, frozen=True, forbid_unknown_fields=True):
    cron: Cron = (
        "0 1 * * *"  # every night; one that was missed is not made up for: the next sees the same rows and more
    )


class RetrainSchedule(ScheduleConfig, frozen=True, forbid_unknown_fields=True):
    cron: Cron = "0 2 * * 0"  # every Sunday
    missed: Literal["skip", "latest", "all"] = "latest"  # two weeks are long for a model
    publish: Literal["now", "hold", "never"] = "now"  # as --publish, --hold and --no-publish


class SyncProductionSchedule(ScheduleConfig, frozen=True, forbid_unknown_fields=True):
    """Runs once after each boot, which is no slot; a `cron` adds some."""


class SchedulesConfig(Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    drift_check: DriftCheckSchedule = DriftCheckSchedule()
    retrain: RetrainSchedule = RetrainSchedule()
    sync_production: SyncProductionSchedule = SyncProductionSchedule()
