from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from servicectl.cli.common import epilog, lines, session

app = typer.Typer(help="Signatures of what is published.", no_args_is_help=True, rich_markup_mode=None)

INIT = """Make a pair of Ed25519 keys: the private one in a file that only you can read, the public one on stdout.

Nothing is configured by it: the lines to add to the configuration are printed. An existing file is never overwritten."""


@app.command("init", help=INIT, epilog=epilog("servicectl trust init /etc/servicectl/signing.pem"))
def init(context: typer.Context, path: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    from servicectl.actions.trust import make_keys

    at = session(context)
    made = make_keys(path.expanduser().absolute())
    told = ["[trust]", f'signing_key_file = "{made.signing_key_file}"', f'public_keys = ["{made.public_key}"]']
    at.end({"signing_key_file": made.signing_key_file, "public_key": made.public_key}, lines(told))


@app.callback()
def trust() -> None:
    """Kept as a group: more verbs belong here."""
