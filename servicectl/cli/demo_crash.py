"""The demo of a crash: one estate undisturbed, one killed twice in the worst moments and resumed; then compared."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from servicectl.cli.demo_compare import Picture, compared, picture
from servicectl.cli.demo_estate import MODEL, DemoEstate, Said
from servicectl.cli.demo_plain import publish_first, require, store_past
from servicectl.cli.demo_screen import Screen, coloured
from servicectl.cli.demo_story import Stage, StageFailed, Story
from servicectl.estate.artifacts import names
from servicectl.files import sha256_of
from servicectl.miniature import data
from servicectl.miniature.estate import RedisKind

PLAN = (
    ("undisturbed-ready", "an undisturbed estate: first model, newest calls, drift-check --queue-only"),
    ("undisturbed-done", "servicectl jobs resume: retrain and publish, undisturbed"),
    ("ready", "a second estate, the same"),
    ("retrain-killed", "SIGKILL of the retrain, its training done and not recorded"),
    ("retrain-interrupted", "servicectl jobs list"),
    ("publish-killed", "servicectl jobs resume, and SIGKILL of the publish right after the swap"),
    ("publish-interrupted", "servicectl jobs list"),
    ("resumed", "servicectl jobs resume"),
    ("compared", "comparing the two estates"),
)

AFTER_TRAINING = "retrain/train/effect"
AFTER_THE_SWAP = "publish/swap/effect"

_FIRST_NEW = data.TOTAL_ROWS - data.NEW_ROWS


def run(story: Story, folder: Path, redis: RedisKind) -> None:
    """Both estates, one after the other. Raises Stopped at the first stage that does not happen."""
    with ExitStack() as running:
        at = _ready(story, "undisturbed-ready", running, folder / "undisturbed", redis)
        with story.stage("undisturbed-done") as stage:
            stage.facts = _finished(at, at.done("jobs", "resume"))
            wanted = picture(at)
    with ExitStack() as running:
        at = _ready(story, "ready", running, folder / "interrupted", redis)
        with story.stage("retrain-killed") as stage:
            stage.facts = _killed(at, AFTER_TRAINING)
        with story.stage("retrain-interrupted") as stage:
            stage.facts = _listed(at, "retrain")
        with story.stage("publish-killed") as stage:
            stage.facts = {**_killed(at, AFTER_THE_SWAP), **_half_done(at)}
        with story.stage("publish-interrupted") as stage:
            stage.facts = _listed(at, "publish")
        with story.stage("resumed") as stage:
            stage.facts = _finished(at, at.done("jobs", "resume"))
        with story.stage("compared") as stage:
            stage.facts = _compared(at, wanted)
            differing = [row["item"] for row in stage.facts["rows"] if not row["equal"]]
            require(at, not differing, f"the two estates differ in: {', '.join(differing)}")


def show(screen: Screen, stage: Stage) -> None:
    """One stage, as it ends."""
    told = stage.facts
    if stage.name == "compared" and told:
        _show_comparison(screen, stage)
        if stage.happened:
            return
    if not stage.happened:
        screen.end(stage)
    elif stage.name in ("undisturbed-ready", "ready"):
        screen.head(f"{'An' if stage.name != 'ready' else 'Another'} estate in small", stage.seconds)
        screen.as_it_is(f"in {told['folder']}, which stays")
        queued = "a retrain queued by drift-check --queue-only"
        screen.say(f"Redis is {told['redis']}; {told['version']} published, newest calls stored, {queued}")
    elif stage.name in ("undisturbed-done", "resumed"):
        screen.head("servicectl jobs resume", stage.seconds)
        ended = ", ".join(f"{job['kind']} {job['outcome']}" for job in told["ran"])
        screen.say(f"{ended}: {told['version']} is in production, generation {told['generation']}")
    elif stage.name in ("retrain-killed", "publish-killed"):
        screen.head(f"servicectl jobs resume[not bold]: [bold red]SIGKILL[/] at {told['killed_at']}[/]", stage.seconds)
        if "pointer" in told:
            screen.say(
                f"the production file holds the new bytes, the pointer still names {told['pointer']}, which is whole"
            )
    else:
        screen.head("servicectl jobs list", stage.seconds)
        rows = [
            (job["id"], job["kind"], coloured(job["state"]), job["outcome"] or "-", str(job["attempts"]))
            for job in told["jobs"]
        ]
        screen.table(["job", "kind", "state", "outcome", "attempts"], rows, right=["attempts"])


def _ready(story: Story, name: str, running: ExitStack, folder: Path, redis: RedisKind) -> DemoEstate:
    """An estate with a first model in production, drifted newest calls, and the retrain waiting in the queue."""
    with story.stage(name) as stage:
        folder.mkdir(mode=0o750)
        at = running.enter_context(DemoEstate(folder, redis))
        store_past(at)
        first = publish_first(at)
        at.insert(_FIRST_NEW, data.TOTAL_ROWS)
        check = at.done("drift-check", "--queue-only").job("drift-check")
        waiting = [job["kind"] for job in at.jobs() if job["state"] == "PENDING"]
        require(at, waiting == ["retrain"], f"drift-check ended in {check['outcome']}; waiting: {waiting}")
        stage.facts = {
            "folder": str(folder),
            "redis": at.estate.redis_told,
            "version": first["version"],
            "waiting": waiting,
        }
    return at


def _killed(at: DemoEstate, point: str) -> dict[str, Any]:
    said = at.command("jobs", "resume", crash_at=point)
    killed = said.status == -signal.SIGKILL
    require(at, killed, f"`servicectl jobs resume` was to be killed at {point}, and ended with status {said.status}")
    return {"killed_at": point, "status": said.status}


def _listed(at: DemoEstate, kind: str) -> dict[str, Any]:
    """The newest jobs as `jobs list` tells them; the one of this kind must be INTERRUPTED."""
    newest = list(reversed(at.jobs()))[:3]
    interrupted = [job["kind"] for job in newest if job["state"] == "INTERRUPTED"]
    require(at, interrupted == [kind], f"`jobs list` shows as interrupted: {', '.join(interrupted) or 'nothing'}")
    return {"jobs": [{name: job[name] for name in ("id", "kind", "state", "outcome", "attempts")} for job in newest]}


def _half_done(at: DemoEstate) -> dict[str, Any]:
    """After the swap and before the pointer: readers by the pointer find the champion, complete."""
    pointer = at.pointer()
    whole = sha256_of(at.artifacts / pointer.name) == pointer.sha256
    swapped = sha256_of(at.artifacts / names.production(names.location(MODEL), MODEL, "pkl")) != pointer.sha256
    require(at, whole, f"{pointer.name} does not have the digest that the pointer names")
    require(at, swapped, "the production file was not swapped yet")
    return {"pointer": pointer.version, "pointed_file_is_whole": whole, "production_file_is_new": swapped}


def _finished(at: DemoEstate, said: Said) -> dict[str, Any]:
    unfinished = [job["kind"] for job in at.jobs() if job["state"] != "COMPLETED"]
    require(at, not unfinished, f"not finished: {', '.join(unfinished)}")
    pointer, served = at.pointer(), at.served_sha256()
    require(at, served == pointer.sha256, f"Service B serves {served[:12]}, the pointer names {pointer.sha256[:12]}")
    ran = [{name: job[name] for name in ("kind", "outcome", "attempts")} for job in said.told["jobs"]]
    publish = said.job("publish")
    if publish["outcome"] != "published":
        raise StageFailed(f"the publish ended in {publish['outcome']}", at.command_log)
    return {"ran": ran, "version": pointer.version, "generation": pointer.generation, "job": publish["job_id"]}


def _compared(at: DemoEstate, wanted: Picture) -> dict[str, Any]:
    rows = compared(wanted, picture(at))
    return {
        "rows": rows,
        "equal": sum(row["equal"] for row in rows),
        "different": sum(not row["equal"] for row in rows),
    }


def _show_comparison(screen: Screen, stage: Stage) -> None:
    told = stage.facts
    screen.head("The two estates, but for ids, times and attempts", stage.seconds)
    rows = [
        (
            row["part"],
            row["item"],
            row["undisturbed"],
            row["interrupted"],
            "[green]equal[/]" if row["equal"] else "[bold red]DIFFERENT[/]",
        )
        for row in told["rows"]
    ]
    screen.table(["", "", "undisturbed", "interrupted", ""], rows)
