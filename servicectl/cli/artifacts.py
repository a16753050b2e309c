from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from servicectl.cli.common import epilog, lines, session

app = typer.Typer(help="The artifact store.", no_args_is_help=True, rich_markup_mode=None)

ADOPT = """Take a model from before servicectl into its care: record the digest of what is served now.

Its bytes are copied under their registry version and hashed, never unpickled. From then on the model can be verified,
compared with challengers and gone back to."""


PRUNE = """List uploads that never came into production, and what killed writers left behind; with --yes, delete them.

Nothing goes that a pointer, the history, the registry or an unfinished job refers to."""


@app.command("adopt", help=ADOPT, epilog=epilog("servicectl artifacts adopt Loan_Approve"))
def adopt(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    version: Annotated[str | None, typer.Option(help="The registry version, if several claim production.")] = None,
) -> None:
    from servicectl.actions import adopt as action
    from servicectl.cli.outcome import end_with

    at = session(context)
    with at.working(f"adopt {model}"):
        ran = action.start(at.world, model, version=version)
    end_with(at, ran)


@app.command("prune", help=PRUNE, epilog=epilog("servicectl artifacts prune --days 30 --yes"))
def prune(
    context: typer.Context,
    days: Annotated[int, typer.Option(min=0, help="Keep what is younger than this.")] = 30,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only say what would go.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing, whatever else is said.")] = False,
) -> None:
    from datetime import timedelta

    from servicectl.actions.prune_artifacts import prune as action

    at = session(context)
    dry_run = dry_run or not yes
    with at.working("prune"):
        swept = action(at.world, at.world.clock.now() - timedelta(days=days), dry_run=dry_run)
    verb = "would delete" if dry_run else "deleted"
    gone = [f"{verb} {name}" for name in (*swept.blobs, *swept.temporaries)]
    left = [f"{model}: busy, left alone" for model in swept.busy]
    how = "; --yes deletes them" if dry_run and gone else ""
    total = f"{verb} {len(gone)} file(s), {swept.bytes / 1e6:.1f} MB{how}"
    at.end(msgspec.to_builtins(swept), lines([*gone, *left, total]))


@app.callback()
def artifacts() -> None:
    """A callback keeps this a group."""
