"""doctor: one check and one cure per party, each on a line of its own."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from servicectl.errors import ServicectlError
from servicectl.store import owner

if TYPE_CHECKING:
    from servicectl.actions.world import World

Health = Literal["ok", "warning", "failed"]


class Check(Struct, frozen=True):
    party: str
    health: Health
    says: str
    cure: str = ""


def examine(world: World, root: Path = Path("/")) -> Iterator[Check]:
    """Every check in turn; one that fails does not stop the next. `root`: where units and cron's tables are looked for."""
    for party, look in _CHECKS.items():
        try:
            yield look(world)
        except ServicectlError as error:
            yield Check(party, "failed", error.message, error.cure)
    try:
        yield from _timers(world, root)
    except ServicectlError as error:
        yield Check("timers", "failed", error.message, error.cure)


def create_view(world: World) -> None:
    """Make the view `features` that Service C reads, on the operator's word; one that is there is left alone."""
    from servicectl.estate.features import CREATE_VIEW

    if not world.registry.has_features_view():
        world.queue.run(CREATE_VIEW)


def _configuration(world: World) -> Check:
    models = len(world.config.models)
    if not models:
        return Check("configuration", "warning", f"{world.config.path} has no model", "add a section [models.NAME]")
    return Check("configuration", "ok", f"{world.config.path}: {models} model{'s' if models > 1 else ''}")


def _job_store(world: World) -> Check:
    waiting = world.runner.table.unfinished()
    with world.runner.locks.held("doctor"):
        pass
    interrupted = world.runner.interrupted(waiting)
    if interrupted:
        return Check("job store", "warning", f"{len(interrupted)} interrupted job(s)", "servicectl jobs resume")
    return Check("job store", "ok", f"{world.config.state_folder} is writable, {len(waiting)} unfinished job(s)")


def _permissions(world: World) -> Check:
    folder = world.config.state_folder
    if not folder.exists():
        return Check("permissions", "ok", f"{folder} will be made on first use")
    status = folder.stat()
    if status.st_mode & 0o002:
        return Check("permissions", "failed", f"{folder} is writable for everybody", f"chmod o-w {folder}")
    if status.st_uid != os.getuid():
        return Check(
            "permissions", "warning", f"{folder} belongs to uid {status.st_uid}", "run servicectl as its owner"
        )
    return Check("permissions", "ok", f"{folder} is yours alone to write")


def _redis(world: World) -> Check:
    world.keys.ping()
    if world.keys.is_empty():
        return Check("Redis", "warning", "answers, and holds no production model", "servicectl sync-production")
    return Check("Redis", "ok", "answers")


def _handler(world: World) -> Check:
    world.queue.ping()
    rows = world.queue.read("SELECT abs(epoch(now()) - 0) AS now_s")
    skew = abs(float(rows[0]["now_s"]) - world.clock.now().timestamp())
    if skew > world.config.handler.clock_skew_s:
        return Check(
            "DuckDB handler",
            "failed",
            f"its clock differs from ours by {skew:.0f} s",
            "set handler.clock_skew_s, or mend the clocks",
        )
    return Check("DuckDB handler", "ok", "answers")


def _view(world: World) -> Check:
    if world.registry.has_features_view():
        return Check("view features", "ok", "exists")
    return Check(
        "view features", "failed", "Service C reads `features`, which does not exist", "servicectl doctor --create-view"
    )


def _rows(world: World) -> Check:
    wanted = sorted(
        {feature for model in world.config.models.values() if model.source.kind == "long" for feature in model.features}
    )
    if not wanted:
        return Check("feature rows", "ok", "no model reads the long table")
    counted = world.registry.feature_rows(wanted)
    absent = [name for name in wanted if name not in counted or counted[name].rows == 0]
    if absent:
        return Check(
            "feature rows", "failed", f"no row has {', '.join(absent)}", "check the names in [models.*] features"
        )
    few = [name for name in wanted if counted[name].rows < world.config.drift.min_rows]
    if few:
        return Check(
            "feature rows",
            "warning",
            f"{len(few)} feature(s) have fewer than {world.config.drift.min_rows} rows: Service C's CRITICAL is not trusted there",
        )
    return Check(
        "feature rows",
        "ok",
        f"{len(wanted)} features, {min(counted[name].rows for name in wanted):,} rows or more each",
    )


def _service_c(world: World) -> Check:
    if world.analytics.reachable():
        return Check("Service C (analytics)", "ok", f"listens at {world.config.analytics.address}")
    return Check(
        "Service C (analytics)",
        "failed",
        f"nobody at {world.config.analytics.address}",
        "start it, or set analytics.address",
    )


def _service_b(world: World) -> Check:
    if world.serving.reachable():
        return Check("Service B (serving)", "ok", f"listens at {world.config.serving.address}")
    needed = world.config.serving.canary == "require"
    return Check(
        "Service B (serving)",
        "failed" if needed else "warning",
        f"nobody at {world.config.serving.address}",
        'start it, or set serving.canary = "try"',
    )


def _artifacts(world: World) -> Check:
    world.artifacts.check()
    return Check("artifact store", "ok", f"{world.config.artifacts_url} can be read and written")


def _trust(world: World) -> Check:
    trust = world.trust
    own = trust.own_key
    if not trust.keys and own is None:
        return Check("trust", "ok", "keyless: models are known by digest only, not by who made them")
    if not trust.keys:
        return Check("trust", "warning", "signs, and verifies nothing", f'add "{own}" to [trust] public_keys')
    file = world.config.trust.signing_key_file
    if file and Path(file).expanduser().stat().st_mode & 0o077:
        return Check("trust", "failed", f"others may read the signing key {file}", f"chmod 600 {file}")
    if own is None:
        return Check("trust", "ok", f"{len(trust.keys)} trusted key(s); this machine verifies and cannot publish")
    if own not in world.config.trust.public_keys:
        return Check("trust", "failed", "our own signing key is not trusted", f'add "{own}" to [trust] public_keys')
    asked = "signatures are required" if trust.required else "unsigned models are accepted too"
    return Check("trust", "ok", f"signs with a trusted key; {asked}")


def _production_blobs(world: World) -> Check:
    from servicectl.actions.doctor_publishing import production_blobs

    found = production_blobs(world)
    return Check("production blobs", found.health, found.says, found.cure)


def _library(world: World) -> Check:
    from servicectl.actions.doctor_publishing import scikit_learn

    found = scikit_learn(world)
    return Check("scikit-learn", found.health, found.says, found.cure)


def _confinement(world: World) -> Check:
    from servicectl.actions.doctor_publishing import confinement

    found = confinement(world)
    return Check("trial load", found.health, found.says, found.cure)


def _snapshots(world: World) -> Check:
    """A real COPY: the only proof that the handler and we mean the same folder."""
    ours, theirs = world.config.snapshot_folder, world.config.snapshot_folder_handler
    ours.mkdir(parents=True, exist_ok=True, mode=0o770)
    name = f"servicectl-{uuid.uuid4().hex}.parquet"
    try:
        world.registry.copy_to_parquet("SELECT 1 AS probe", f"{theirs}/{name}")
        if not (ours / name).is_file():
            return Check(
                "snapshot folder",
                "failed",
                f"the handler writes to {theirs}, which is not {ours}",
                "set handler.snapshot_folder_handler to the same folder as the handler sees it",
            )
    finally:
        (ours / name).unlink(missing_ok=True)
    free = shutil.disk_usage(ours).free / 1e9
    return Check("snapshot folder", "ok", f"the handler writes to {ours}; {free:.0f} GB free")


def _timers(world: World, root: Path) -> Iterator[Check]:
    """What starts jobs by the calendar, and every known trap in it."""
    from servicectl.actions.doctor_timers import Machine, by_systemd, findings, own_table, states_of
    from servicectl.actions.installed_timers import JOBS, read
    from servicectl.actions.slots import schedules
    from servicectl.jobs.slots import machine_zone

    ours = root == Path("/")
    home = Path(os.environ.get("HOME", "/")) if ours else None
    readable = os.access(root / "var/spool/cron/crontabs", os.R_OK | os.X_OK)
    own = own_table() if ours and not readable else ""
    installed = read(root, home=home, user=str(owner()["user"]), own_table=own)
    units = {timer.command.job for timer in installed.timers}
    lines = {line.command.job for line in installed.lines}
    if absent := [job for job in JOBS if job not in units | lines]:
        cure = "docs/timers.md: systemctl enable --now servicectl-{sync-production,drift-check,retrain,resume}.timer, or cron"
        yield Check("timers", "warning", f"not scheduled: {', '.join(absent)}", cure)
    else:
        by = (
            "systemd runs all four"
            if units == set(JOBS)
            else "cron runs all four"
            if not units
            else "systemd and cron share them"
        )
        yield Check("timers", "ok", by)
    booted = ours and Path("/run/systemd/system").exists()
    states = states_of(installed.timers) if booted else {}
    machine = Machine(machine_zone(root), world.clock.now(), by_systemd, lambda path: _is_program(root, path), states)
    for one in findings(installed, schedules(world), machine):
        yield Check("timers", one.health, one.says, one.cure)


def _is_program(root: Path, path: str) -> bool:
    return os.access(root / path.lstrip("/"), os.X_OK)


_CHECKS: dict[str, Callable[[World], Check]] = {
    "configuration": _configuration,
    "job store": _job_store,
    "permissions": _permissions,
    "Redis": _redis,
    "DuckDB handler": _handler,
    "view features": _view,
    "feature rows": _rows,
    "Service C (analytics)": _service_c,
    "Service B (serving)": _service_b,
    "artifact store": _artifacts,
    "production blobs": _production_blobs,
    "scikit-learn": _library,
    "trust": _trust,
    "trial load": _confinement,
    "snapshot folder": _snapshots,
}
