"""The demo from its folder to its exit status."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import typer

from servicectl.cli.demo_screen import Screen
from servicectl.cli.demo_story import Stopped, Story
from servicectl.errors import ExitStatus, UsageError
from servicectl.miniature.estate import RedisKind

if TYPE_CHECKING:
    from types import FrameType

    from servicectl.cli.session import Session


def start(at: Session, *, crash: bool, folder: Path | None, redis: str) -> NoReturn:
    """Run the demo and leave: 0 if every stage happened, else 1. Raises UsageError for a folder that cannot be used."""
    kind = _redis_kind(redis)
    place = scratch_folder(folder)
    screen = Screen(quiet=at.as_json)
    with ending_in_order(), screen.working():
        story, more = _crash(screen, place, kind) if crash else _plain(screen, place, kind)
    if at.as_json:
        _print_json(story, place, more)
    else:
        _last_words(screen, story, place if not crash else place / "interrupted")
    raise typer.Exit(ExitStatus.OK if story.happened else ExitStatus.FAILED)


def scratch_folder(wanted: Path | None) -> Path:
    """An empty folder for the demo: the wanted one, else a new one here. Raises UsageError."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = (wanted or Path(f"servicectl-demo-{stamp}")).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        used = any(folder.iterdir())
    except OSError as error:
        raise UsageError(
            f"the demo cannot use {folder}: {error.strerror}", cure="servicectl demo --folder a place you may write"
        ) from None
    if used:
        raise UsageError(f"{folder} is not empty", cure="name a new folder with --folder, or leave the option out")
    return folder


def _plain(screen: Screen, place: Path, redis: RedisKind) -> tuple[Story, dict[str, Any]]:
    from servicectl.cli import demo_plain

    story = Story(demo_plain.PLAN, place / "log", screen.begin, screen.end)
    with suppress(Stopped):
        demo_plain.run(story, place, redis)
    return story, {"demo": "loop"}


def _crash(screen: Screen, place: Path, redis: RedisKind) -> tuple[Story, dict[str, Any]]:
    from servicectl.cli import demo_crash

    story = Story(demo_crash.PLAN, place, screen.begin, lambda stage: demo_crash.show(screen, stage))
    with suppress(Stopped):
        demo_crash.run(story, place, redis)
    return story, {"demo": "crash"}


def _print_json(story: Story, place: Path, more: dict[str, Any]) -> None:
    import msgspec

    told = {
        **more,
        "folder": str(place),
        "happened": story.happened,
        "seconds": round(story.seconds, 1),
        "stages": [stage.as_json() for stage in story.stages],
        "exit_status": int(ExitStatus.OK if story.happened else ExitStatus.FAILED),
    }
    print(msgspec.json.encode(told).decode())


def _last_words(screen: Screen, story: Story, folder: Path) -> None:
    missing = [stage.name for stage in story.stages if not stage.happened]
    if missing:
        screen.head(
            f"[red]{len(missing)} of {len(story.stages)} stages did not happen:[/] {', '.join(missing)}", story.seconds
        )
        return
    screen.head("All of it happened[not bold]; estate stopped, folder kept; look around:[/]", story.seconds)
    program, config = _program(), _relative(folder / "servicectl.toml")
    job = next((stage.facts["job"] for stage in reversed(story.stages) if "job" in stage.facts), "JOB")
    for words in ("jobs list", f"jobs show {job[-8:]}"):
        screen.as_it_is(f"{program} --config {shlex.quote(config)} {words}")


def _program() -> str:
    """How the user can type servicectl again."""
    typed = Path(sys.argv[0])
    found = shutil.which("servicectl")
    if found is not None and Path(found).resolve() == typed.resolve():
        return "servicectl"
    return (
        _relative(typed.absolute())
        if typed.name == "servicectl"
        else f"{_relative(Path(sys.executable))} -m servicectl"
    )


def _relative(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _redis_kind(text: str) -> RedisKind:
    kinds: tuple[RedisKind, ...] = get_args(RedisKind)
    for kind in kinds:
        if text == kind:
            return kind
    raise UsageError(f"--redis {text}: no such kind", cure=f"one of: {', '.join(kinds)}")


@contextmanager
def ending_in_order() -> Iterator[None]:
    """SIGTERM and a closed terminal unwind like Ctrl-C does, so that the estate is stopped."""

    def unwind(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    heard = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, unwind) for number in heard}  # nohup stays nohup
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
