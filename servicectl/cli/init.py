from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from servicectl.cli.common import epilog, lines, session

HELP = """Write a commented configuration. An existing file is never overwritten."""


def register(app: typer.Typer) -> None:
    app.command("init", help=HELP, epilog=epilog("servicectl init /etc/servicectl/servicectl.toml"))(init)


def init(
    context: typer.Context,
    path: Annotated[Path | None, typer.Argument(metavar="FILE", help="Default: the user's own place.")] = None,
) -> None:
    from servicectl.config import search_path
    from servicectl.errors import UsageError
    from servicectl.files import write_atomically

    at = session(context)
    target = (path or search_path()[0]).expanduser().absolute()
    if target.exists():
        raise UsageError(f"{target} exists already", cure=f"edit it, then servicectl --config {target} doctor")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, (Path(__file__).parent / "templates/servicectl.toml").read_bytes())
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}", cure="name another file") from None
    next_step = f"servicectl --config {target} doctor" if path else "servicectl doctor"
    at.end({"config": str(target)}, lines([f"wrote {target}", f"next: edit it, then {next_step}"]))
